//! Values with what they are measured in: `\$5`, `10\%`, `15\text{ cm}^2`,
//! `5\text{ ft }6\text{ in}`, `7\text{ million}`.

use super::budget::Stop;
use super::expression;
use super::lex::{Number, Token};
use super::measures::{multiple, scale};
use super::phrases::{is_unit, text_of};
use super::statement::Statement;
use super::tree::{Answer, Constant, Expr};
use super::words::Unit;

impl Statement<'_> {
    /// A value with its unit: `\$5`, `10\%`, `15\text{ cm}^2`, `12^{th}`.
    pub(super) fn quantity(&self, tokens: &[Token], depth: usize) -> Result<Option<Answer>, Stop> {
        let named = |name: &str| Unit {
            name: name.into(),
            known: true,
        };
        let quantity = |value: Answer, unit: Unit| {
            Some(Answer::Quantity {
                value: Box::new(value),
                unit,
            })
        };
        match tokens {
            [Token::Sign(sign), rest @ ..] if !rest.is_empty() && currency(*sign).is_some() => {
                let name = currency(*sign).unwrap_or_default();
                let value = self.answer(rest, depth + 1)?;
                return Ok(match value {
                    // "\$5 dollars" says it twice.
                    Answer::Quantity { value, unit } if unit.name == name => {
                        quantity(*value, named(name))
                    }
                    value => quantity(value, named(name)),
                });
            }
            [Token::Sign('-'), Token::Sign(sign), rest @ ..]
                if !rest.is_empty() && currency(*sign).is_some() =>
            {
                let mut negative = vec![Token::Sign('-')];
                negative.extend_from_slice(rest);
                return Ok(quantity(
                    self.answer(&negative, depth + 1)?,
                    named(currency(*sign).unwrap_or_default()),
                ));
            }
            [rest @ .., Token::Sign(sign @ ('€' | '£' | '¥' | '₹'))] if !rest.is_empty() => {
                return Ok(quantity(
                    self.answer(rest, depth + 1)?,
                    named(currency(*sign).unwrap_or_default()),
                ));
            }
            [Token::Number(_), Token::Sign('\'')] => {
                return Ok(quantity(self.answer(&tokens[..1], depth + 1)?, named("ft")));
            }
            [rest @ .., Token::Sign('%')] if !rest.is_empty() => {
                return Ok(quantity(self.answer(rest, depth + 1)?, named("percent")));
            }
            [rest @ .., Token::Command("min")] if !rest.is_empty() => {
                return Ok(quantity(self.answer(rest, depth + 1)?, named("min")));
            }
            _ => {}
        }
        let (body, power) = match tokens {
            [body @ .., Token::Sign('^'), Token::Number(n)] if n.integer => (body, small(n)),
            [
                body @ ..,
                Token::Sign('^'),
                Token::Open,
                Token::Number(n),
                Token::Close,
            ] if n.integer => (body, small(n)),
            body => (body, None),
        };
        let mut from = body.len();
        while from > 0 && is_unit(&body[from - 1], body.get(from.wrapping_sub(2))) {
            from -= 1;
        }
        if from == body.len() || from == 0 {
            return Ok(None);
        }
        let text: Vec<&str> = body[from..].iter().filter_map(text_of).collect();
        let text = text.join(" ");
        // "7 million dollars": the first word scales, the rest is the unit.
        let (first, others) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if let Some(multiple) = multiple(&first.to_lowercase()) {
            let Answer::Value { value, .. } = self.answer(&body[..from], depth + 1)? else {
                return Ok(None);
            };
            let value = Answer::value(Expr::product(vec![Expr::integer(multiple), value]));
            return Ok(Some(match Unit::read(others, power) {
                Some(unit) => Answer::Quantity {
                    value: Box::new(value),
                    unit,
                },
                None => value,
            }));
        }
        let Some(mut unit) = Unit::read(&text, power) else {
            return Ok(None);
        };
        let mut rest = &body[..from];
        // 20^\circ\text{C}: the sign and the letter are one unit.
        if matches!(unit.name.as_str(), "c" | "f")
            && let [before @ .., Token::Sign('°')] = rest
        {
            rest = before;
            unit = named(&format!("degree {}", unit.name));
        }
        let value = self.answer(rest, depth + 1)?;
        if unit.name == "degree"
            && let Answer::Value { value, .. } = &value
        {
            let degrees = Expr::product(vec![value.clone(), Expr::Constant(Constant::Degree)]);
            return Ok(Some(Answer::value(degrees)));
        }
        Ok(quantity(value, unit))
    }

    /// Amounts of one kind, the larger units first, as one of the smallest:
    /// "1 hour and 30 minutes", `5'6''`. `None` for anything else.
    pub(super) fn compound(&self, tokens: &[Token], depth: usize) -> Result<Option<Answer>, Stop> {
        if !matches!(tokens.first(), Some(Token::Number(_))) || tokens.len() < 3 {
            return Ok(None);
        }
        self.budget.spend(4 * tokens.len())?;
        if let Some(quantity) = primes(tokens) {
            return Ok(Some(quantity));
        }
        let mut parts: Vec<(Expr, Unit)> = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            while !parts.is_empty() && matches!(tokens[at], Token::And | Token::Sign(',')) {
                at += 1;
                if at == tokens.len() {
                    return Ok(None);
                }
            }
            let measured =
                |at: usize| is_unit(&tokens[at], at.checked_sub(1).map(|at| &tokens[at]));
            let start = at;
            while at < tokens.len() && !measured(at) {
                at += 1;
            }
            let from = at;
            while at < tokens.len() && measured(at) {
                at += 1;
            }
            let text: Vec<&str> = tokens[from..at].iter().filter_map(text_of).collect();
            let unit = match start < from && from < at {
                true => Unit::read(text.join(" ").trim_end_matches(" and"), None)
                    .filter(|unit| scale(unit).is_some()),
                false => None,
            };
            let Some(unit) = unit else {
                return Ok(None);
            };
            let value = expression::parse(&tokens[start..from], depth, self.budget);
            match value {
                Ok(value) => parts.push((value, unit)),
                Err(Stop::Budget) => return Err(Stop::Budget),
                Err(_) => return Ok(None),
            }
            if parts.len() > 4 {
                return Ok(None);
            }
        }
        Ok(added(parts))
    }
}

/// The amounts in the smallest of their units, which comes last.
fn added(parts: Vec<(Expr, Unit)>) -> Option<Answer> {
    let (_, smallest) = parts.last().filter(|_| parts.len() > 1)?;
    let smallest = smallest.clone();
    let mut terms = Vec::with_capacity(parts.len());
    let mut before = None;
    for (value, unit) in parts {
        let ratio = super::measures::ratio(&unit, &smallest)?;
        if before.is_some_and(|before| before <= ratio) {
            return None;
        }
        terms.push(Expr::product(vec![Expr::Number(ratio.clone()), value]));
        before = Some(ratio);
    }
    Some(Answer::Quantity {
        value: Box::new(Answer::value(Expr::sum(terms))),
        unit: smallest,
    })
}

/// `5'6''` and `5'6"`, of which the lexer drops the last sign.
fn primes(tokens: &[Token]) -> Option<Answer> {
    const PRIME: Token = Token::Sign('\'');
    let (value, unit) = match tokens {
        [Token::Number(inches), PRIME, PRIME] => (inches.value.clone(), "in"),
        [Token::Number(feet), PRIME, Token::Number(inches)]
        | [
            Token::Number(feet),
            PRIME,
            Token::Number(inches),
            PRIME,
            PRIME,
        ] => {
            let twelve = num_rational::BigRational::from_integer(12.into());
            (&feet.value * twelve + &inches.value, "in")
        }
        _ => return None,
    };
    Some(Answer::Quantity {
        value: Box::new(Answer::value(Expr::Number(value))),
        unit: Unit {
            name: unit.into(),
            known: true,
        },
    })
}

fn small(number: &Number) -> Option<u32> {
    use num_traits::ToPrimitive;
    number.value.to_u32().filter(|n| (2..=9).contains(n))
}

/// The unit a sign of money stands for.
fn currency(sign: char) -> Option<&'static str> {
    Some(match sign {
        '$' => "dollar",
        '€' => "euro",
        '£' => "pound sterling",
        '¥' => "yuan",
        '₹' => "rupee",
        _ => return None,
    })
}
