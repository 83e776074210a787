//! Free parameters: the k of `k\pi, k \in \mathbb{Z}`, the C of `x^2 + C`.
//! Their names say nothing, so they may differ between two answers.

use super::budget::{Budget, Stop};
use super::equal::same_value;
use super::lex::Token;
use super::nesting::{at_depth_zero, closing};
use super::phrases::is_qualifier;
use super::structure::Comparison;
use super::tree::{Answer, Constant, Expr, Sign};
use super::words;

/// A parameter that an answer declares, with the numbers it runs through
/// where they are named.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    pub name: String,
    pub domain: Option<String>,
    /// Its set stands behind a sign, so it is meant.
    pub exact: bool,
}

/// Whether both sides name one parameter and let it run through different
/// sets: `2k` for integers k and for positive ones.
pub fn disagree(gold: &[Parameter], answer: &[Parameter]) -> bool {
    gold.iter().any(|a| {
        answer
            .iter()
            .any(|b| a.name == b.name && a.exact && b.exact && a.domain != b.domain)
    })
}

/// The tokens without the declarations `k \in \mathbb{Z}` behind them, and
/// what these and the qualifiers left in place ("for some integer t") declare.
pub fn declared(tokens: Vec<Token>, budget: &Budget) -> Result<(Vec<Token>, Vec<Parameter>), Stop> {
    let mut found = Vec::new();
    let declares = |token: &Token| *token == Token::Sign('∈') || is_qualifier(token);
    let says = |token: &Token| matches!(token, Token::Text(_) | Token::Word(_));
    if !tokens.iter().any(|token| declares(token) || says(token)) {
        return Ok((tokens, found));
    }
    budget.spend(tokens.len() * 4)?;
    let mut tokens = out_of_builder(tokens, &mut found);
    while let Some((kept, parameters)) = last_declaration(&tokens) {
        budget.spend(tokens.len() * 2)?;
        tokens.truncate(kept);
        found.extend(parameters);
    }
    let qualifying = at_depth_zero(&tokens)
        .find(|(at, token)| *at > 0 && is_qualifier(token))
        .map(|(at, _)| at);
    if let Some(at) = qualifying {
        found.extend(named_in(&tokens[at..], &tokens[..at]));
    }
    Ok((tokens, found))
}

/// `\{2k\pi : k \in \mathbb{Z}\}` as `2k\pi`.
fn out_of_builder(tokens: Vec<Token>, found: &mut Vec<Parameter>) -> Vec<Token> {
    let [Token::Sign('{'), inner @ .., Token::Sign('}')] = tokens.as_slice() else {
        return tokens;
    };
    if closing(&tokens, 0) != Some(tokens.len() - 1) {
        return tokens;
    }
    let bar = at_depth_zero(inner).find(|(_, token)| matches!(token, Token::Sign('|' | ':')));
    let Some((bar, _)) = bar else {
        return tokens;
    };
    let (element, condition) = (&inner[..bar], &inner[bar + 1..]);
    match (element, condition) {
        // \{x \mid x = 2k, k \in \mathbb{Z}\}
        ([Token::Letter(name), ..], [Token::Letter(same), Token::Sign('='), rest @ ..])
            if name == same && last_declaration(rest).is_some() =>
        {
            rest.to_vec()
        }
        ([_, _, ..], _) => match membership(condition) {
            Some(parameters) if occur(&parameters, element) => {
                found.extend(parameters);
                element.to_vec()
            }
            _ => tokens,
        },
        _ => tokens,
    }
}

/// Where the last declaration of a text starts, and what it declares.
fn last_declaration(tokens: &[Token]) -> Option<(usize, Vec<Parameter>)> {
    let fits = |kept: usize, parameters: Vec<Parameter>| {
        (kept > 0 && occur(&parameters, &tokens[..kept])).then_some((kept, parameters))
    };
    // [..](k \in \mathbb{Z})
    if let [.., Token::Sign(')')] = tokens {
        let open = (0..tokens.len().saturating_sub(3))
            .rev()
            .take(12)
            .find(|open| {
                tokens[*open] == Token::Sign('(')
                    && closing(tokens, *open) == Some(tokens.len() - 1)
            })?;
        return fits(open, membership(&tokens[open + 1..tokens.len() - 1])?);
    }
    let cuts: Vec<usize> = at_depth_zero(tokens)
        .filter(|(_, token)| matches!(token, Token::Sign(',' | ';')))
        .map(|(at, _)| at)
        .collect();
    // "a, b \in \mathbb{Z}" has a comma of its own.
    let letters = cuts
        .windows(2)
        .rev()
        .take_while(|pair| pair[1] - pair[0] == 2)
        .count();
    if let Some(at) = cuts.len().checked_sub(1 + letters).map(|cut| cuts[cut]) {
        let part = without_lead(&tokens[at + 1..]);
        if let Some(parameters) = membership(part).or_else(|| adjective(part)) {
            return fits(at, parameters);
        }
    }
    // k\pi \quad k \in \mathbb{Z}
    let (member, _) = at_depth_zero(tokens)
        .filter(|(_, token)| **token == Token::Sign('∈'))
        .last()?;
    let start = member.checked_sub(1).filter(|start| *start > 0)?;
    let lead = tokens[..start]
        .iter()
        .rposition(|token| !is_lead(token))
        .map_or(0, |at| at + 1);
    fits(lead, membership(&tokens[start..])?)
}

fn is_lead(token: &Token) -> bool {
    match token {
        Token::Text(text) | Token::Word(text) => matches!(
            words::key(text).as_str(),
            "where" | "for" | "for any" | "for some" | "for all" | "with" | "any" | "some"
        ),
        token => *token == Token::Command("forall"),
    }
}

fn without_lead(tokens: &[Token]) -> &[Token] {
    let lead = tokens.iter().take_while(|token| is_lead(token)).count();
    &tokens[lead..]
}

/// `k, n \in \mathbb{Z}`: letters in a set of numbers that has a name.
fn membership(tokens: &[Token]) -> Option<Vec<Parameter>> {
    let tokens = without_lead(tokens);
    let member = tokens.iter().position(|token| *token == Token::Sign('∈'))?;
    let domain = domain(&tokens[member + 1..])?;
    let mut found = Vec::new();
    for (at, token) in tokens[..member].iter().enumerate() {
        match token {
            Token::Letter(name) if at % 2 == 0 => found.push(Parameter {
                name: name.clone(),
                domain: Some(domain.clone()),
                exact: true,
            }),
            Token::Sign(',') | Token::And if at % 2 == 1 => {}
            _ => return None,
        }
    }
    (!found.is_empty() && found.len() <= 4).then_some(found)
}

fn domain(tokens: &[Token]) -> Option<String> {
    let (first, rest) = tokens.split_first()?;
    let name = match first {
        Token::Command("Integers") => "Z",
        Token::Command("Naturals") => "N",
        Token::Command("Reals") => "R",
        Token::Command("Rationals") => "Q",
        Token::Command("Complexes") => "C",
        Token::Letter(name) if matches!(name.as_str(), "Z" | "N" | "R" | "Q" | "C") => name,
        _ => return None,
    };
    let rest: Vec<String> = rest
        .iter()
        .filter(|token| !matches!(token, Token::Open | Token::Close))
        .filter(|token| !matches!(token, Token::Sign('^' | '_' | '.')))
        .map(|token| match token {
            Token::Sign(sign) => sign.to_string(),
            Token::Number(number) => number.value.to_string(),
            other => format!("{other:?}"),
        })
        .collect();
    (rest.len() <= 3).then(|| format!("{name}{}", rest.concat()))
}

/// `n \text{ is an integer}`, in one token or two.
fn adjective(tokens: &[Token]) -> Option<Vec<Parameter>> {
    let (name, said) = match tokens {
        [
            Token::Letter(name),
            Token::Text(said) | Token::Word(said),
            ..,
        ] => (name.clone(), words::key(said)),
        [Token::Text(said)] => {
            let key = words::key(said);
            let (name, rest) = key.split_once(' ')?;
            (name.to_string(), rest.to_string())
        }
        _ => return None,
    };
    let is = [
        "is a",
        "is an",
        "is any",
        "any ",
        "an arbitrary",
        "arbitrary",
        "is arbitrary",
    ];
    let declares = name.chars().count() == 1 && is.iter().any(|start| said.starts_with(start));
    declares.then(|| {
        vec![Parameter {
            name,
            domain: domain_in_words(&said),
            exact: false,
        }]
    })
}

fn domain_in_words(said: &str) -> Option<String> {
    let has = |word: &str| said.contains(word);
    Some(match () {
        () if has("positive integer") || has("natural") => "N".into(),
        () if has("positive") || has("non") || has("odd") || has("even") || has("prime") => {
            return None;
        }
        () if has("integer") => "Z".into(),
        () if has("real") => "R".into(),
        () => return None,
    })
}

/// Single letters of a qualifying phrase that `text` has too.
fn named_in(phrase: &[Token], text: &[Token]) -> Vec<Parameter> {
    let mut names: Vec<String> = Vec::new();
    let mut said = String::new();
    for token in phrase {
        match token {
            Token::Letter(name) => names.push(name.clone()),
            Token::Text(words) | Token::Word(words) => {
                said.push_str(words);
                said.push(' ');
                // The article is no name.
                let single = |word: &&str| word.len() == 1 && *word != "a";
                names.extend(words.split_whitespace().filter(single).map(String::from));
            }
            _ => {}
        }
    }
    let domain = domain_in_words(&words::key(&said));
    names.sort();
    names.dedup();
    names
        .into_iter()
        .map(|name| Parameter {
            name,
            domain: domain.clone(),
            exact: false,
        })
        .filter(|parameter| occur(std::slice::from_ref(parameter), text))
        .collect()
}

/// Whether all of them stand in the text.
fn occur(parameters: &[Parameter], text: &[Token]) -> bool {
    parameters.iter().all(|parameter| {
        text.iter().any(|token| match token {
            Token::Letter(name) => *name == parameter.name,
            Token::Word(word) => word.len() <= 4 && word.contains(&parameter.name),
            _ => false,
        })
    })
}

impl Comparison<'_> {
    /// Compares again with the answer's parameters named as the gold answer's,
    /// where both have some that only they have.
    pub fn with_renamed(
        &self,
        gold: &Answer,
        gold_names: &[Parameter],
        answer: &Answer,
        answer_names: &[Parameter],
    ) -> Result<bool, Stop> {
        let (mut wanted, mut found) = (Vec::new(), Vec::new());
        let mut bound = Vec::new();
        free(gold, &mut wanted, &mut bound);
        free(answer, &mut found, &mut bound);
        for names in [&mut wanted, &mut found] {
            names.retain(|name| !bound.contains(name));
            names.sort();
            names.dedup();
        }
        let ours: Vec<&String> = wanted.iter().filter(|name| !found.contains(name)).collect();
        let theirs: Vec<&String> = found.iter().filter(|name| !wanted.contains(name)).collect();
        if ours.len() != theirs.len() || ours.is_empty() || ours.len() > 2 {
            return Ok(false);
        }
        // Whether a letter is a parameter is looked for in each part of each.
        self.budget.spend(40 * (size(gold) + size(answer)))?;
        let says = |list: &[Parameter], names: &[&String]| {
            names
                .iter()
                .all(|name| list.iter().any(|parameter| parameter.name == **name))
        };
        let conventional = || {
            let counted = ours.iter().any(|name| is_periodic(name, gold));
            ours.iter().all(|name| is_conventional(name, gold))
                && theirs.iter().all(|name| match counted {
                    true => is_periodic(name, answer),
                    false => is_letter(name),
                })
        };
        if !says(gold_names, &ours) && !says(answer_names, &theirs) && !conventional() {
            return Ok(false);
        }
        let domain = |list: &[Parameter], name: &String| {
            list.iter()
                .find(|parameter| parameter.name == *name)
                .and_then(|parameter| parameter.domain.clone())
        };
        let orders: &[[usize; 2]] = match ours.len() {
            1 => &[[0, 0]],
            _ => &[[0, 1], [1, 0]],
        };
        for order in orders {
            let pairs: Vec<(&String, &String)> = ours
                .iter()
                .enumerate()
                .map(|(at, name)| (*name, theirs[order[at]]))
                .collect();
            let conflict = pairs.iter().any(|(ours, theirs)| {
                let (a, b) = (domain(gold_names, ours), domain(answer_names, theirs));
                a.is_some() && b.is_some() && a != b
            });
            if conflict {
                continue;
            }
            let mut renamed = answer.clone();
            for (ours, theirs) in &pairs {
                let to = Expr::Symbol((*ours).clone());
                renamed = self.substituted(&renamed, theirs, &to)?;
            }
            match self.same(gold, &renamed) {
                Ok((true, _)) => return Ok(true),
                Ok(_) | Err(Stop::Undefined | Stop::Unreadable) => {}
                Err(stop) => return Err(stop),
            }
        }
        Ok(false)
    }

    /// The same set of numbers counted from elsewhere: `x = \pi/4 + k\pi` for
    /// `-3\pi/4 + k\pi`, where k is any integer.
    pub fn shifted(
        &self,
        gold: &Answer,
        gold_names: &[Parameter],
        answer: &Answer,
    ) -> Result<bool, Stop> {
        let (Some(a), Some(b)) = (value_of(gold), value_of(answer)) else {
            return Ok(false);
        };
        let (wanted, found) = (a.symbols(), b.symbols());
        let ([ours], [theirs]) = (wanted.as_slice(), found.as_slice()) else {
            return Ok(false);
        };
        let integer = |list: &[Parameter]| {
            list.iter()
                .any(|p| p.name == *ours && p.domain.as_deref() == Some("Z"))
        };
        if !integer(gold_names) && !is_periodic(ours, gold) {
            return Ok(false);
        }
        if ours != theirs && !is_periodic(theirs, answer) && !integer(gold_names) {
            return Ok(false);
        }
        for (sign, step) in [(1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1)] {
            self.budget.spend(b.size() * 2)?;
            let variable = Expr::Symbol(ours.clone());
            let moved = Expr::sum(vec![
                Expr::product(vec![Expr::integer(sign), variable]),
                Expr::integer(step),
            ]);
            match same_value(a, &b.substitute(theirs, &moved), self.budget) {
                Ok((true, _)) => return Ok(true),
                Ok(_) | Err(Stop::Undefined | Stop::Unreadable) => {}
                Err(stop) => return Err(stop),
            }
        }
        Ok(false)
    }

    fn substituted(&self, answer: &Answer, name: &str, to: &Expr) -> Result<Answer, Stop> {
        self.budget.spend(8)?;
        let list = |items: &[Answer]| -> Result<Vec<Answer>, Stop> {
            items
                .iter()
                .map(|item| self.substituted(item, name, to))
                .collect()
        };
        Ok(match answer {
            Answer::Value { value, decimals } => {
                self.budget.spend(value.size())?;
                Answer::Value {
                    value: value.substitute(name, to),
                    decimals: *decimals,
                }
            }
            Answer::List { items, or } => Answer::List {
                items: list(items)?,
                or: *or,
            },
            Answer::Bracketed { open, items, close } => Answer::Bracketed {
                open: *open,
                items: list(items)?,
                close: *close,
            },
            Answer::Relation { sides, signs } => Answer::Relation {
                sides: list(sides)?,
                signs: signs.clone(),
            },
            Answer::Union(sets) => Answer::Union(list(sets)?),
            Answer::Member(names, set) => {
                let set = self.substituted(set, name, to)?;
                Answer::Member(names.clone(), Box::new(set))
            }
            other => other.clone(),
        })
    }
}

fn value_of(answer: &Answer) -> Option<&Expr> {
    match answer {
        Answer::Value { value, .. } => Some(value),
        Answer::Relation { sides, signs } => match (sides.as_slice(), signs.as_slice()) {
            ([label, Answer::Value { value, .. }], [Sign::Equal])
                if super::normal::is_name(label) =>
            {
                Some(value)
            }
            _ => None,
        },
        _ => None,
    }
}

/// Names of variables in the values of an answer, apart from those that its
/// labels name: of `f(x) = ax` only a.
fn free(answer: &Answer, names: &mut Vec<String>, bound: &mut Vec<String>) {
    match answer {
        Answer::Value { value, .. } => names.extend(value.symbols()),
        Answer::List { items, .. } | Answer::Bracketed { items, .. } | Answer::Union(items) => {
            items.iter().for_each(|item| free(item, names, bound));
        }
        Answer::Relation { sides, signs } => {
            let label =
                signs.iter().all(|sign| *sign == Sign::Equal) && super::normal::is_name(&sides[0]);
            if label {
                free(&sides[0], bound, &mut Vec::new());
            }
            sides[usize::from(label)..]
                .iter()
                .for_each(|side| free(side, names, bound));
        }
        Answer::Member(of, set) => {
            free(of, bound, &mut Vec::new());
            free(set, names, bound);
        }
        _ => {}
    }
}

/// Parts of the values of an answer.
fn size(answer: &Answer) -> usize {
    match answer {
        Answer::Value { value, .. } => value.size(),
        Answer::List { items, .. } | Answer::Bracketed { items, .. } | Answer::Union(items) => {
            items.iter().map(size).sum()
        }
        Answer::Relation { sides, .. } => sides.iter().map(size).sum(),
        Answer::Member(_, set) => size(set),
        _ => 1,
    }
}

fn is_letter(name: &str) -> bool {
    let base = name.split_once('_').map_or(name, |(base, _)| base);
    base.chars().count() == 1 && !matches!(base, "x" | "y" | "z" | "r" | "R")
}

/// Whether a letter can be nothing but a parameter where it stands.
fn is_conventional(name: &str, answer: &Answer) -> bool {
    if !is_letter(name) {
        return false;
    }
    if is_periodic(name, answer) {
        return true;
    }
    // f(x) = ax
    let function = |label: &Answer| {
        match label {
        Answer::Value { value, .. } => matches!(value, Expr::Apply(..)),
        Answer::Bracketed { items, .. } => items.iter().all(
            |item| matches!(item, Answer::Value { value: Expr::Apply(_, args), .. } if args.iter().all(|arg| matches!(arg, Expr::Symbol(_)))),
        ),
        _ => false,
    }
    };
    if let Answer::Relation { sides, signs } = answer
        && signs.iter().all(|sign| *sign == Sign::Equal)
        && function(&sides[0])
    {
        return true;
    }
    // x^2 + C
    let constant = name.starts_with(['C', 'c']) && (name.len() == 1 || name[1..].starts_with('_'));
    constant
        && any_value(answer, &|value| {
            let names = value.symbols();
            names.len() > 1 && names.iter().any(|other| other == name)
        })
}

/// Whether a letter counts turns: `2k\pi`, `360^\circ k`.
fn is_periodic(name: &str, answer: &Answer) -> bool {
    let turn = |part: &Expr| matches!(part, Expr::Constant(Constant::Pi | Constant::Degree));
    let counts = |part: &Expr| match part {
        Expr::Product(factors) => {
            factors.iter().any(|factor| factor.any(&turn))
                && factors
                    .iter()
                    .any(|factor| factor.symbols().iter().any(|symbol| symbol == name))
        }
        _ => false,
    };
    matches!(name, "k" | "n" | "m" | "l" | "z" | "t")
        && any_value(answer, &|value| {
            value.symbols().len() == 1 && value.any(&counts)
        })
}

fn any_value(answer: &Answer, test: &dyn Fn(&Expr) -> bool) -> bool {
    match answer {
        Answer::Value { value, .. } => test(value),
        Answer::List { items, .. } | Answer::Bracketed { items, .. } | Answer::Union(items) => {
            items.iter().any(|item| any_value(item, test))
        }
        Answer::Relation { sides, .. } => sides.iter().any(|side| any_value(side, test)),
        Answer::Member(_, set) => any_value(set, test),
        _ => false,
    }
}
