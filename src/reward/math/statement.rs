//! Tokens as an answer: lists, relations, sets, brackets, units; what is left
//! is an expression.

use super::budget::{Budget, DEEPEST, Stop};
use super::expression;
use super::lex::{Token, lex};
use super::named::{letter_set, named_set};
use super::nesting::{at_depth_zero, closing, split};
use super::parameters::{self, Parameter};
use super::phrases::{all_words, text_answer, without_fillers, without_qualifiers};
use super::repair::repair;
use super::tree::{Answer, Constant, Expr, Sign};
use super::words::{self, Unit};

type Parsed = Result<Answer, Stop>;

/// Reads a cleaned text as an answer, with the parameters that it declares.
pub fn read(text: &str, budget: &Budget) -> Result<(Answer, Vec<Parameter>), Stop> {
    let tokens = repair(lex(text, budget)?);
    let (tokens, parameters) = parameters::declared(tokens, budget)?;
    Ok((Statement { budget }.answer(&tokens, 0)?, parameters))
}

/// Reads a cleaned text as an answer.
pub fn parse(text: &str, budget: &Budget) -> Parsed {
    Ok(read(text, budget)?.0)
}

pub(super) struct Statement<'a> {
    pub(super) budget: &'a Budget,
}

impl Statement<'_> {
    pub(super) fn answer(&self, tokens: &[Token], depth: usize) -> Parsed {
        if depth > DEEPEST {
            return Err(Stop::Budget);
        }
        self.budget.spend(8 + 4 * tokens.len())?;
        let unqualified = without_qualifiers(tokens);
        let tokens = without_fillers(unqualified.as_deref().unwrap_or(tokens));
        if tokens.is_empty() {
            return Err(Stop::Unreadable);
        }
        if let Some(compound) = self.compound(tokens, depth)? {
            return Ok(compound);
        }
        if let Some(arranged) = self.arrangements(tokens, depth)? {
            return Ok(arranged);
        }
        if let Some(congruence) = self.congruence(tokens, depth)? {
            return Ok(congruence);
        }
        for separator in [&[Token::Sign(';')][..], &LIST_MARKS] {
            if tokens.iter().any(|token| separator.contains(token)) {
                let parts = split(tokens, |token| separator.contains(token));
                if parts.len() > 1 {
                    return self.list(tokens, parts, depth);
                }
            }
        }
        if let Some(words) = all_words(tokens) {
            return Ok(text_answer(&words));
        }
        if let Some(relation) = self.relation(tokens, depth)? {
            return Ok(relation);
        }
        if let Some(set) = self.set_operation(tokens, depth)? {
            return Ok(set);
        }
        if let Some(bracketed) = self.brackets(tokens, depth)? {
            return Ok(bracketed);
        }
        if let Some(ratio) = self.ratio(tokens, depth)? {
            return Ok(ratio);
        }
        if let Some(quantity) = self.quantity(tokens, depth)? {
            return Ok(quantity);
        }
        self.value(tokens, depth)
    }

    fn list(&self, tokens: &[Token], parts: Vec<&[Token]>, depth: usize) -> Parsed {
        let mut items = Vec::with_capacity(parts.len());
        for part in parts {
            if !part.is_empty() {
                items.push(self.answer(part, depth + 1)?);
            }
        }
        match items.len() {
            0 => Err(Stop::Unreadable),
            1 => Ok(items.remove(0)),
            _ => Ok(Answer::List {
                items,
                or: at_depth_zero(tokens).any(|(_, token)| *token == Token::Or),
            }),
        }
    }

    fn relation(&self, tokens: &[Token], depth: usize) -> Result<Option<Answer>, Stop> {
        let mut cuts: Vec<(usize, char)> = at_depth_zero(tokens)
            .filter_map(|(at, token)| match token {
                Token::Sign(c) if "=≠<>≤≥≡∈≈⇒".contains(*c) => Some((at, *c)),
                _ => None,
            })
            .collect();
        if cuts.is_empty() {
            // "Minimum: 1" labels as "Minimum = 1" does.
            let colon = at_depth_zero(tokens).find(|(_, token)| **token == Token::Sign(':'));
            match colon {
                // AB : CD is a ratio.
                Some((at, _))
                    if all_words(&tokens[..at]).is_some()
                        && !(are_capitals(&tokens[..at]) && are_capitals(&tokens[at + 1..])) =>
                {
                    cuts.push((at, '='))
                }
                _ => return Ok(None),
            }
        }
        if let Some((at, _)) = cuts.iter().rfind(|(_, c)| *c == '⇒') {
            return self.answer(&tokens[at + 1..], depth + 1).map(Some);
        }
        if let Some((at, _)) = cuts.iter().find(|(_, c)| *c == '∈') {
            let names = self.answer(&tokens[..*at], depth + 1)?;
            let set = match letter_set(&tokens[at + 1..]) {
                Some(set) => set,
                None => self.answer(&tokens[at + 1..], depth + 1)?,
            };
            return Ok(Some(Answer::Member(Box::new(names), Box::new(set))));
        }
        let approximate = cuts.iter().position(|(_, c)| *c == '≈');
        if let Some(first) = approximate {
            let at = cuts[first].0;
            let left = &tokens[..at];
            // "x \approx 3" gives x; "\frac{1}{3} \approx 0.33" is a third.
            let named = left.len() == 1 && matches!(left[0], Token::Letter(_) | Token::Word(_));
            if left.is_empty() || named {
                return self.answer(&tokens[at + 1..], depth + 1).map(Some);
            }
            return self.answer(left, depth + 1).map(Some);
        }
        let mut sides = Vec::with_capacity(cuts.len() + 1);
        let mut signs = Vec::with_capacity(cuts.len());
        let mut from = 0;
        for (at, c) in &cuts {
            signs.push(match c {
                '=' => Sign::Equal,
                '≠' => Sign::NotEqual,
                '<' => Sign::Less,
                '>' => Sign::Greater,
                '≤' => Sign::LessEqual,
                '≥' => Sign::GreaterEqual,
                _ => Sign::Congruent,
            });
            sides.push(self.side(&tokens[from..*at], depth)?);
            from = at + 1;
        }
        sides.push(self.side(&tokens[from..], depth)?);
        Ok(Some(Answer::Relation { sides, signs }))
    }

    /// One side of a relation: a name with arguments, `T(10)`, or any answer.
    fn side(&self, tokens: &[Token], depth: usize) -> Parsed {
        match tokens {
            [Token::Command(name @ ("max" | "min"))] => return Ok(Answer::Text((*name).into())),
            // f^{-1}(x)
            [
                Token::Letter(name),
                Token::Sign('^'),
                Token::Open,
                Token::Sign('-'),
                Token::Number(one),
                Token::Close,
                Token::Sign('('),
                Token::Letter(argument),
                Token::Sign(')'),
            ] if one.integer && one.decimals == 0 && !name.starts_with('\\') => {
                let value = &one.value;
                let argument = Expr::Symbol(argument.clone());
                let name = format!("{name}^-{value}");
                return Ok(Answer::value(Expr::Apply(name, vec![argument])));
            }
            // P(X = 2)
            [
                Token::Letter(name),
                Token::Sign('('),
                inner @ ..,
                Token::Sign(')'),
            ] if matches!(name.as_str(), "P" | "E")
                && closing(tokens, 1) == Some(tokens.len() - 1)
                && inner
                    .iter()
                    .any(|token| matches!(token, Token::Sign(c) if "=<>≤≥|∪∩".contains(*c))) =>
            {
                self.budget.spend(40 * inner.len())?;
                let event = Expr::Text(format!("{inner:?}"));
                return Ok(Answer::value(Expr::Apply(name.clone(), vec![event])));
            }
            _ => {}
        }
        // "xy = 6" says nothing of a thing called xy.
        if let [Token::Word(word)] = tokens
            && word.len() <= 3
            && word.bytes().all(|b| b.is_ascii_lowercase())
        {
            return self.value(tokens, depth);
        }
        // (P(x), Q(x)) = ...
        if let [Token::Sign('('), inner @ .., Token::Sign(')')] = tokens
            && closing(tokens, 0) == Some(tokens.len() - 1)
        {
            let parts = split(inner, |token| *token == Token::Sign(','));
            if parts.len() > 1 && parts.iter().all(|part| !part.is_empty()) {
                let mut items = Vec::with_capacity(parts.len());
                for part in parts {
                    items.push(self.side(part, depth + 1)?);
                }
                return Ok(Answer::Bracketed {
                    open: '(',
                    items,
                    close: ')',
                });
            }
        }
        if let Some(open) = tokens.iter().position(|token| *token == Token::Sign('('))
            && open > 0
            && matches!(tokens[0], Token::Letter(_) | Token::Word(_))
            && closing(tokens, open) == Some(tokens.len() - 1)
        {
            let name = match open {
                1 => self.value(&tokens[..1], depth)?,
                _ if tokens[1] == Token::Sign('_') || tokens[1] == Token::Sign('\'') => {
                    self.value(&tokens[..open], depth)?
                }
                _ => return self.answer(tokens, depth + 1),
            };
            let mut arguments = Vec::new();
            for part in split(&tokens[open + 1..tokens.len() - 1], |token| {
                *token == Token::Sign(',')
            }) {
                arguments.push(expression::parse(part, depth, self.budget)?);
            }
            let plain = arguments
                .iter()
                .all(|argument| matches!(argument, Expr::Symbol(_) | Expr::Number(_)));
            if let (Answer::Value { value, .. }, true) = (&name, plain)
                && let Some(name) = name_of(value)
            {
                return Ok(Answer::value(Expr::Apply(name, arguments)));
            }
        }
        self.answer(tokens, depth + 1)
    }

    fn set_operation(&self, tokens: &[Token], depth: usize) -> Result<Option<Answer>, Stop> {
        for sign in ['∪', '∩', '∖'] {
            if !tokens.contains(&Token::Sign(sign)) {
                continue;
            }
            let parts = split(tokens, |token| *token == Token::Sign(sign));
            if parts.len() < 2 {
                continue;
            }
            let mut sets = Vec::with_capacity(parts.len());
            for part in parts {
                sets.push(self.answer(part, depth + 1)?);
            }
            return Ok(Some(match sign {
                '∪' => Answer::Union(sets),
                '∩' => Answer::Intersection(sets),
                _ => difference(sets)?,
            }));
        }
        // \mathbb{R} - \{0\}
        let set = |part: &[Token]| {
            matches!(
                part.first(),
                Some(Token::Command("Reals") | Token::Sign('{'))
            )
        };
        let parts = match set(tokens) {
            true => split(tokens, |token| *token == Token::Sign('-')),
            false => Vec::new(),
        };
        if parts.len() > 1 && parts.iter().all(|part| set(part)) {
            let mut sets = Vec::with_capacity(parts.len());
            for part in parts {
                sets.push(self.answer(part, depth + 1)?);
            }
            return difference(sets).map(Some);
        }
        Ok(named_set(tokens))
    }

    /// A tuple, an interval, a set or a group that encloses all there is.
    fn brackets(&self, tokens: &[Token], depth: usize) -> Result<Option<Answer>, Stop> {
        let stacked = |token: &Token| matches!(token, Token::Command("over" | "choose"));
        if tokens.first() == Some(&Token::Open)
            && closing(tokens, 0) == Some(tokens.len() - 1)
            && !at_depth_zero(&tokens[1..tokens.len() - 1]).any(|(_, token)| stacked(token))
        {
            return self
                .answer(&tokens[1..tokens.len() - 1], depth + 1)
                .map(Some);
        }
        // A system of equations: cases, or an array behind a single brace.
        let system = match tokens {
            [Token::Sign('{'), Token::Begin(_), .., Token::End] => &tokens[1..],
            tokens => tokens,
        };
        if let [Token::Begin(name), inner @ .., Token::End] = system
            && (matches!(name.as_str(), "cases" | "aligned" | "align" | "gathered")
                || system.len() < tokens.len())
            && !inner.contains(&Token::End)
        {
            if let Some(pieces) = self.piecewise(inner, depth)? {
                return Ok(Some(pieces));
            }
            let rows: Vec<Token> = inner
                .iter()
                .filter(|token| **token != Token::Sign('&'))
                .map(|token| match token {
                    Token::Row => Token::Sign(','),
                    token => token.clone(),
                })
                .collect();
            return self.answer(&rows, depth + 1).map(Some);
        }
        let open = match tokens.first() {
            Some(Token::Sign(c @ ('(' | '[' | '{' | '⟨'))) => *c,
            _ => return Ok(None),
        };
        if closing(tokens, 0) != Some(tokens.len() - 1) {
            return Ok(None);
        }
        let Some(Token::Sign(close)) = tokens.last() else {
            return Ok(None);
        };
        let inner = &tokens[1..tokens.len() - 1];
        if open == '{' {
            if inner.is_empty() {
                return Ok(Some(Answer::Empty));
            }
            if let Some(builder) = self.builder(inner, depth)? {
                return Ok(Some(builder));
            }
        }
        let parts = split(inner, |token| {
            matches!(token, Token::Sign(',' | ';')) || (open == '{' && LIST_MARKS.contains(token))
        });
        let mut items = Vec::with_capacity(parts.len());
        for part in parts {
            if part.is_empty() && open != '{' {
                return Err(Stop::Unreadable);
            }
            if !part.is_empty() {
                items.push(self.answer(part, depth + 1)?);
            }
        }
        let (open, close) = match (open, *close) {
            ('⟨', '⟩') => ('(', ')'),
            pair => pair,
        };
        if items.len() == 1 && open != '{' {
            return match (open, close) {
                ('(', ')') | ('[', ']') => Ok(items.pop()),
                _ => Err(Stop::Unreadable),
            };
        }
        let matched = match open {
            '{' => close == '}',
            _ => close == ')' || close == ']',
        };
        match matched {
            true => Ok(Some(Answer::Bracketed { open, items, close })),
            false => Err(Stop::Unreadable),
        }
    }

    /// Rows of a value and its condition, as a list of both.
    fn piecewise(&self, inner: &[Token], depth: usize) -> Result<Option<Answer>, Stop> {
        let rows = split(inner, |token| *token == Token::Row);
        let mut pieces = Vec::with_capacity(rows.len());
        for row in rows {
            if row.is_empty() {
                continue;
            }
            let cells = split(row, |token| *token == Token::Sign('&'));
            let [value, condition] = cells.as_slice() else {
                return Ok(None);
            };
            let lead = |token: &&Token| match token {
                Token::Text(text) | Token::Word(text) => {
                    matches!(words::key(text).as_str(), "if" | "when" | "for" | "where")
                }
                token => **token == Token::Sign(','),
            };
            let skipped = condition.iter().take_while(lead).count();
            let condition = &condition[skipped..];
            // x &= 1 is a row of a system.
            let aligned = matches!(condition.first(), None | Some(Token::Sign('=' | '<' | '>')));
            if value.is_empty() || aligned {
                return Ok(None);
            }
            let condition = match condition {
                [Token::Text(text)] => {
                    let key = words::key(text);
                    let bare = ["if ", "when ", "for "]
                        .iter()
                        .find_map(|start| key.strip_prefix(start));
                    Answer::Text(bare.unwrap_or(&key).to_string())
                }
                condition => self.answer(condition, depth + 1)?,
            };
            pieces.push(Answer::Bracketed {
                open: PIECE,
                items: vec![self.answer(value, depth + 1)?, condition],
                close: PIECE,
            });
        }
        Ok((pieces.len() > 1).then_some(Answer::List {
            items: pieces,
            or: false,
        }))
    }

    /// `x \mid x < 3` between braces.
    fn builder(&self, inner: &[Token], depth: usize) -> Result<Option<Answer>, Stop> {
        let bar = at_depth_zero(inner)
            .find(|(_, token)| matches!(token, Token::Sign('|' | ':')))
            .map(|(at, _)| at);
        let Some(at) = bar.filter(|at| *at > 0 && *at <= 4) else {
            return Ok(None);
        };
        if !inner[..at]
            .iter()
            .any(|token| matches!(token, Token::Letter(_)))
        {
            return Ok(None);
        }
        let (condition, _) = parameters::declared(inner[at + 1..].to_vec(), self.budget)?;
        let condition = self.answer(&condition, depth + 1)?;
        Ok(Some(Answer::Builder(Box::new(condition))))
    }

    fn ratio(&self, tokens: &[Token], depth: usize) -> Result<Option<Answer>, Stop> {
        if !tokens.contains(&Token::Sign(':')) {
            return Ok(None);
        }
        let parts = split(tokens, |token| *token == Token::Sign(':'));
        if parts.len() < 2 {
            return Ok(None);
        }
        // A time's suffix belongs to all of it.
        if let Some(Token::Text(suffix) | Token::Word(suffix)) = tokens.last()
            && let Some(unit) = Unit::read(suffix, None).filter(|unit| unit.known)
        {
            let value = self.answer(&tokens[..tokens.len() - 1], depth + 1)?;
            return Ok(Some(Answer::Quantity {
                value: Box::new(value),
                unit,
            }));
        }
        let mut terms = Vec::with_capacity(parts.len());
        for part in parts {
            terms.push(expression::parse(part, depth, self.budget)?);
        }
        Ok(Some(Answer::Ratio(terms)))
    }

    fn value(&self, tokens: &[Token], depth: usize) -> Parsed {
        if let [Token::Based { digits, base }] = tokens {
            return Ok(Answer::Based {
                digits: digits.clone(),
                base: *base,
            });
        }
        let decimals = match tokens {
            [Token::Number(number)] | [Token::Sign('-' | '+'), Token::Number(number)] => {
                (!number.integer).then_some(number.decimals)
            }
            _ => None,
        };
        let value = expression::parse(tokens, depth, self.budget)?;
        Ok(Answer::Value { value, decimals })
    }
}

/// The brackets of a value with its condition, which no text has.
const PIECE: char = '¦';

const LIST_MARKS: [Token; 3] = [Token::Sign(','), Token::And, Token::Or];

/// The first less all others.
fn difference(sets: Vec<Answer>) -> Parsed {
    if sets.len() > DEEPEST {
        return Err(Stop::Budget);
    }
    let mut sets = sets.into_iter();
    let first = sets.next().unwrap_or(Answer::Empty);
    Ok(sets.fold(first, |left, right| {
        Answer::Difference(Box::new(left), Box::new(right))
    }))
}

/// The name of a segment, and what may follow behind a colon.
fn are_capitals(tokens: &[Token]) -> bool {
    matches!(tokens.first(), Some(Token::Word(word)) if word.bytes().all(|b| b.is_ascii_uppercase()))
}

fn name_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Symbol(name) => Some(name.clone()),
        Expr::Constant(Constant::E) => Some("e".into()),
        Expr::Constant(Constant::I) => Some("i".into()),
        Expr::Text(text) => Some(text.clone()),
        _ => None,
    }
}
