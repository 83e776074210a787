//! Congruences: `x \equiv 3 \pmod 7`, and the numbers 7k + 3.

use num_rational::BigRational;

use super::budget::Stop;
use super::equal::{Decision, same_value};
use super::exact;
use super::expression;
use super::lex::Token;
use super::nesting::{at_depth_zero, closing, split};
use super::statement::Statement;
use super::structure::{Comparison, decided};
use super::tree::{Answer, Expr};

impl Statement<'_> {
    /// `n \equiv 2, 3 \pmod 4`, `5 (mod 8)`: one congruence for each residue.
    pub(super) fn congruence(
        &self,
        tokens: &[Token],
        depth: usize,
    ) -> Result<Option<Answer>, Stop> {
        let modulo = |token: &Token| matches!(token, Token::Command("pmod" | "mod" | "bmod"));
        if tokens.iter().filter(|token| modulo(token)).count() != 1 {
            return Ok(None);
        }
        let Some(at) = tokens.iter().position(modulo) else {
            return Ok(None);
        };
        let relation = at_depth_zero(tokens).find(|(_, token)| **token == Token::Sign('≡'));
        let equals = at_depth_zero(tokens).any(|(_, token)| *token == Token::Sign('='));
        let bracketed = at > 0
            && tokens[at - 1] == Token::Sign('(')
            && closing(tokens, at - 1) == Some(tokens.len() - 1);
        let (left, right) = match bracketed {
            true => (&tokens[..at - 1], &tokens[at + 1..tokens.len() - 1]),
            false => (&tokens[..at], &tokens[at + 1..]),
        };
        let said = bracketed || tokens[at] == Token::Command("pmod") || relation.is_some();
        if !said || equals || left.is_empty() || right.is_empty() {
            return Ok(None);
        }
        let modulus = expression::parse(right, depth, self.budget)?;
        let residues = match relation {
            Some((sign, _)) if sign < left.len() => &left[sign + 1..],
            _ => left,
        };
        let marks = [Token::Sign(','), Token::And, Token::Or];
        let mut items = Vec::new();
        for part in split(residues, |token| marks.contains(token)) {
            if part.is_empty() {
                continue;
            }
            items.push(Answer::Congruence {
                residue: expression::parse(part, depth, self.budget)?,
                modulus: modulus.clone(),
            });
        }
        Ok(match items.len() {
            0 => None,
            1 => items.pop(),
            _ => Some(Answer::List { items, or: true }),
        })
    }
}

impl Comparison<'_> {
    pub(super) fn congruences(&self, gold: (&Expr, &Expr), answer: (&Expr, &Expr)) -> Decision {
        let ((a, m), (b, n)) = (gold, answer);
        if !same_value(m, n, self.budget)?.0 {
            return decided(false, "different moduli");
        }
        if same_value(a, b, self.budget)?.0 {
            return decided(true, "the same residue");
        }
        let numbers = [a, b, m].map(|expr| exact::rational(expr, self.budget));
        let [Ok(Some(a)), Ok(Some(b)), Ok(Some(m))] = numbers else {
            return decided(false, "different residues");
        };
        let zero = num_traits::Zero::is_zero(&m);
        decided(!zero && ((a - b) / m).is_integer(), "residues")
    }

    /// `4k + 2` for 2 modulo 4.
    pub(super) fn progression(&self, residue: &Expr, modulus: &Expr, value: &Expr) -> Decision {
        const NO: &str = "a congruence and a value";
        let names = value.symbols();
        let [name] = names.as_slice() else {
            return decided(false, NO);
        };
        self.budget.spend(value.size() * 4)?;
        let at = |x: i64| exact::rational(&value.substitute(name, &Expr::integer(x)), self.budget);
        let (Ok(Some(first)), Ok(Some(second)), Ok(Some(third))) = (at(0), at(1), at(2)) else {
            return decided(false, NO);
        };
        let (Ok(Some(residue)), Ok(Some(modulus))) = (
            exact::rational(residue, self.budget),
            exact::rational(modulus, self.budget),
        ) else {
            return decided(false, NO);
        };
        let step = &second - &first;
        let zero: BigRational = num_traits::Zero::zero();
        let even = &third - &second == step && modulus != zero;
        let whole = even && ((first - residue) / &modulus).is_integer();
        let one_step = step == modulus || step == -modulus;
        decided(whole && one_step, "a progression as a congruence")
    }
}
