//! One form for answers that say the same with other structure: plus-minus
//! as two values, lists with one label, assignments in groups.

use super::budget::{Budget, Stop};
use super::ranges::written_out;
use super::tree::{Answer, Constant, Expr, Sign};

/// Values that plus-minus signs may stand for together, at most.
const MOST_SIGNS: usize = 6;

/// The answer with plus-minus signs expanded and labels of lists opened.
pub fn normal(answer: Answer, budget: &Budget) -> Result<Answer, Stop> {
    budget.spend(4)?;
    Ok(match answer {
        Answer::Value { value, decimals } => match signs_in(&value) {
            0 => Answer::Value { value, decimals },
            _ => list(both_signs(&value, budget)?.map(Answer::value).to_vec()),
        },
        Answer::List { items, or } => {
            let items = written_out(flattened(items, budget)?, budget)?;
            list_of(shared_label(grouped(items)), or)
        }
        Answer::Bracketed {
            open: '{',
            items,
            close,
        } => Answer::Bracketed {
            open: '{',
            items: written_out(flattened(items, budget)?, budget)?,
            close,
        },
        Answer::Bracketed { open, items, close } => tuple(open, items, close, budget)?,
        Answer::Relation { sides, signs } => {
            let mut sides = sides;
            let last = sides.pop().ok_or(Stop::Unreadable)?;
            match normal(last, budget)? {
                // x = 1 \pm 2: two equations.
                Answer::List { items, or }
                    if signs.iter().all(|sign| *sign == Sign::Equal)
                        || signs.as_slice() == [Sign::NotEqual] =>
                {
                    let or = or && signs[0] == Sign::Equal;
                    let with = |item: Answer| {
                        let mut sides = sides.clone();
                        sides.push(item);
                        Answer::Relation {
                            sides,
                            signs: signs.clone(),
                        }
                    };
                    list_of(items.into_iter().map(with).collect(), or)
                }
                last => {
                    sides.push(last);
                    Answer::Relation { sides, signs }
                }
            }
        }
        Answer::Quantity { value, unit } => match normal(*value, budget)? {
            Answer::List { items, or } => {
                let with = |item| Answer::Quantity {
                    value: Box::new(item),
                    unit: unit.clone(),
                };
                list_of(items.into_iter().map(with).collect(), or)
            }
            value => Answer::Quantity {
                value: Box::new(value),
                unit,
            },
        },
        other => other,
    })
}

fn list(items: Vec<Answer>) -> Answer {
    list_of(items, true)
}

fn list_of(mut items: Vec<Answer>, or: bool) -> Answer {
    match items.len() {
        1 => items.remove(0),
        _ => Answer::List { items, or },
    }
}

/// Items in normal form, with what became a list opened into this one.
fn flattened(items: Vec<Answer>, budget: &Budget) -> Result<Vec<Answer>, Stop> {
    let mut flat = Vec::with_capacity(items.len());
    for item in items {
        let was_list = matches!(item, Answer::List { .. });
        match normal(item, budget)? {
            Answer::List { items, .. } if !was_list => flat.extend(items),
            item => flat.push(item),
        }
        budget.spend(flat.len() / 8)?;
    }
    Ok(flat)
}

/// `p=5, q=2, p=7, q=2` as two pairs, where the names come again in turn; a
/// list of lists of assignments as a list of tuples.
fn grouped(items: Vec<Answer>) -> Vec<Answer> {
    if !items.is_empty() && items.iter().all(|item| assignments(item).is_some()) {
        return items
            .into_iter()
            .map(|item| match assignments(&item) {
                Some(values) => tuple_of(values),
                None => item,
            })
            .collect();
    }
    let names: Option<Vec<&str>> = items
        .iter()
        .map(|item| assigned(item).map(|(name, _)| name))
        .collect();
    let Some(names) = names else {
        return items;
    };
    let Some(period) = names.iter().skip(1).position(|name| *name == names[0]) else {
        return items;
    };
    let period = period + 1;
    let regular = period > 1
        && names.len() % period == 0
        && names
            .iter()
            .enumerate()
            .all(|(at, name)| *name == names[at % period]);
    if !regular {
        return items;
    }
    items
        .chunks(period)
        .map(|group| {
            let values = group
                .iter()
                .filter_map(|item| Some(assigned(item)?.1.clone()));
            tuple_of(values.collect())
        })
        .collect()
}

fn tuple_of(items: Vec<Answer>) -> Answer {
    Answer::Bracketed {
        open: '(',
        items,
        close: ')',
    }
}

/// The values of a list that assigns each of its names once.
fn assignments(answer: &Answer) -> Option<Vec<Answer>> {
    let Answer::List { items, .. } = answer else {
        return None;
    };
    items
        .iter()
        .map(|item| assigned(item).map(|(_, value)| value.clone()))
        .collect()
}

fn assigned(item: &Answer) -> Option<(&str, &Answer)> {
    let Answer::Relation { sides, signs } = item else {
        return None;
    };
    match (sides.as_slice(), signs.as_slice()) {
        (
            [
                Answer::Value {
                    value: Expr::Symbol(name),
                    ..
                },
                value,
            ],
            [Sign::Equal],
        ) => Some((name, value)),
        _ => None,
    }
}

/// `x = 2, -1`: the label of the first is the label of all.
fn shared_label(mut items: Vec<Answer>) -> Vec<Answer> {
    let relation = |item: &Answer| matches!(item, Answer::Relation { .. });
    if items.len() < 2 || items[1..].iter().any(relation) {
        return items;
    }
    // x \ne 1, 2
    if let Answer::Relation { sides, signs } = &items[0]
        && signs.as_slice() == [Sign::NotEqual]
        && is_name(&sides[0])
    {
        let label = sides[0].clone();
        return std::iter::once(items[0].clone())
            .chain(items[1..].iter().map(|item| Answer::Relation {
                sides: vec![label.clone(), item.clone()],
                signs: vec![Sign::NotEqual],
            }))
            .collect();
    }
    if let Answer::Relation { sides, signs } = &items[0]
        && let ([label, value], [Sign::Equal]) = (sides.as_slice(), signs.as_slice())
        && is_name(label)
    {
        items[0] = value.clone();
    }
    items
}

/// Whether an answer names something rather than being its value.
pub fn is_name(answer: &Answer) -> bool {
    match answer {
        Answer::Text(_) => true,
        Answer::Value { value, .. } => names(value),
        Answer::Ratio(terms) => terms.iter().all(names),
        Answer::Bracketed { items, .. } | Answer::List { items, .. } => items.iter().all(is_name),
        _ => false,
    }
}

fn names(expr: &Expr) -> bool {
    use super::tree::Function;
    match expr {
        Expr::Symbol(_) | Expr::Text(_) | Expr::Apply(..) => true,
        Expr::Constant(Constant::E | Constant::I) => true,
        Expr::Call(Function::Abs | Function::Sin | Function::Cos | Function::Tan, args) => {
            args.iter().all(names)
        }
        // \frac{AB}{CD}, AB + BC
        Expr::Product(factors) => {
            // \angle ABC, \triangle ABC
            let figure = |factor: &Expr| matches!(factor, Expr::Symbol(s) if s == "\\angle" || s == "\\triangle");
            factors.iter().all(names) && factors.iter().any(figure) || is_of_segments(expr)
        }
        Expr::Sum(_) | Expr::Power(..) => is_of_segments(expr),
        _ => false,
    }
}

/// Whether an expression is of lengths between points alone.
fn is_of_segments(expr: &Expr) -> bool {
    match expr {
        Expr::Symbol(name) => name.len() >= 2 && name.bytes().all(|b| b.is_ascii_uppercase()),
        Expr::Product(parts) | Expr::Sum(parts) => parts.iter().all(is_of_segments),
        Expr::Power(base, exponent) => is_of_segments(base) && exponent.as_number().is_some(),
        _ => false,
    }
}

/// Elements in order; with plus-minus signs the list of all that it stands
/// for: independent ones, or together where a minus-plus stands among them.
fn tuple(open: char, items: Vec<Answer>, close: char, budget: &Budget) -> Result<Answer, Stop> {
    let mut plain = Vec::with_capacity(items.len());
    for item in items {
        plain.push(match item {
            item @ Answer::Value { .. } => item,
            item => normal(item, budget)?,
        });
    }
    let signs: usize = plain.iter().map(signs_of).sum();
    if signs == 0 {
        return Ok(Answer::Bracketed {
            open,
            items: plain,
            close,
        });
    }
    if signs > MOST_SIGNS {
        return Err(Stop::Budget);
    }
    // Every tuple is a copy of all elements, made twice on the way, compared and
    // dropped.
    let sizes: usize = plain.iter().map(size).sum();
    budget.spend((sizes << signs) * 12)?;
    let together = plain.iter().any(|item| match item {
        Answer::Value { value, .. } => {
            value.any(&|part| matches!(part, Expr::PlusMinus { flipped: true, .. }))
        }
        _ => false,
    });
    let mut tuples: Vec<Vec<Answer>> = vec![Vec::new()];
    if together {
        tuples = vec![Vec::new(), Vec::new()];
    }
    for item in plain {
        let values: Vec<Answer> = match &item {
            Answer::Value { value, .. } if signs_in(value) > 0 => {
                both_signs(value, budget)?.map(Answer::value).to_vec()
            }
            item => vec![item.clone()],
        };
        if together {
            for (tuple, which) in tuples.iter_mut().zip([0, 1]) {
                tuple.push(values[which.min(values.len() - 1)].clone());
            }
        } else {
            tuples = tuples
                .into_iter()
                .flat_map(|tuple| {
                    values.iter().map(move |value| {
                        let mut tuple = tuple.clone();
                        tuple.push(value.clone());
                        tuple
                    })
                })
                .collect();
        }
    }
    let tuples = tuples
        .into_iter()
        .map(|items| Answer::Bracketed { open, items, close });
    Ok(list(tuples.collect()))
}

/// Parts of an element, about.
fn size(item: &Answer) -> usize {
    match item {
        Answer::Value { value, .. } => value.size(),
        Answer::Bracketed { items, .. } | Answer::List { items, .. } => {
            1 + items.iter().map(size).sum::<usize>()
        }
        _ => 8,
    }
}

fn signs_of(item: &Answer) -> usize {
    match item {
        Answer::Value { value, .. } => signs_in(value),
        _ => 0,
    }
}

fn signs_in(expr: &Expr) -> usize {
    usize::from(matches!(expr, Expr::PlusMinus { .. }))
        + expr.children().into_iter().map(signs_in).sum::<usize>()
}

/// The expression with all upper signs and with all lower ones.
fn both_signs(expr: &Expr, budget: &Budget) -> Result<[Expr; 2], Stop> {
    if signs_in(expr) > MOST_SIGNS {
        return Err(Stop::Budget);
    }
    budget.spend(expr.size() * 2)?;
    Ok([choose(expr, false), choose(expr, true)])
}

fn choose(expr: &Expr, lower: bool) -> Expr {
    match expr {
        Expr::PlusMinus { of, flipped } => {
            let of = choose(of, lower);
            match lower != *flipped {
                true => of.negate(),
                false => of,
            }
        }
        other => other.map(&mut |part| choose(part, lower)),
    }
}
