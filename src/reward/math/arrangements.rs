//! "(1,2,3) and its permutations": all the tuples that this names.

use super::budget::Stop;
use super::lex::Token;
use super::statement::Statement;
use super::tree::Answer;
use super::words;

/// Elements of a tuple whose arrangements are written out, at most.
const MOST: usize = 4;

impl Statement<'_> {
    /// The tuples of an answer that ends by saying "permutations".
    pub(super) fn arrangements(
        &self,
        tokens: &[Token],
        depth: usize,
    ) -> Result<Option<Answer>, Stop> {
        let word = |token: &Token| match token {
            Token::Text(text) | Token::Word(text) => Some(words::key(text)),
            Token::And | Token::Or | Token::Sign(',') => Some(String::new()),
            _ => None,
        };
        let behind = tokens.iter().rev().map_while(word).count();
        let said: String = tokens[tokens.len() - behind..]
            .iter()
            .filter_map(word)
            .collect::<Vec<_>>()
            .join(" ");
        if behind == tokens.len() || !said.contains("permutation") {
            return Ok(None);
        }
        // Each arrangement is a copy of the whole.
        self.budget.spend(64 * tokens.len())?;
        let tuples = match self.answer(&tokens[..tokens.len() - behind], depth + 1)? {
            Answer::List { items, .. } => items,
            one => vec![one],
        };
        let cyclic = said.contains("cyclic");
        let mut all: Vec<Answer> = Vec::new();
        for tuple in tuples {
            let Answer::Bracketed {
                open: '(',
                items,
                close: ')',
            } = label_less(tuple)
            else {
                return Err(Stop::Unreadable);
            };
            if items.len() > MOST {
                return Err(Stop::Budget);
            }
            for items in orders(&items, cyclic) {
                self.budget.spend(16 + 8 * all.len())?;
                let tuple = Answer::Bracketed {
                    open: '(',
                    items,
                    close: ')',
                };
                if !all.contains(&tuple) {
                    all.push(tuple);
                }
            }
        }
        Ok(Some(Answer::List {
            items: all,
            or: false,
        }))
    }
}

/// `(1,2,3)` of `(a,b,c) = (1,2,3)`.
fn label_less(answer: Answer) -> Answer {
    match answer {
        Answer::Relation { mut sides, .. } if sides.len() == 2 => sides.swap_remove(1),
        answer => answer,
    }
}

fn orders(items: &[Answer], cyclic: bool) -> Vec<Vec<Answer>> {
    if cyclic {
        let turned = |by: usize| [&items[by..], &items[..by]].concat();
        return (0..items.len()).map(turned).collect();
    }
    if items.is_empty() {
        return vec![Vec::new()];
    }
    (0..items.len())
        .flat_map(|first| {
            let mut rest = items.to_vec();
            let head = rest.remove(first);
            orders(&rest, false).into_iter().map(move |mut tail| {
                tail.insert(0, head.clone());
                tail
            })
        })
        .collect()
}
