//! `arca grade`: judge answers against gold answers.

use anyhow::{Context, Result, bail};

use super::Outcome;
use super::args::GradeArgs;
use super::rows::read_rows;
use crate::reward::{Grader, Verdict};

/// Runs the verb. Whatever the verdicts, it has done its work.
pub fn run(args: GradeArgs) -> Result<Outcome> {
    if let (Some(gold), Some(answer)) = (&args.gold, &args.answer) {
        let grader = Grader::default();
        return line(&grader.text(gold, answer)).map(|()| Outcome::Done);
    }
    let file = args.file.context("name a file of answers")?;
    let grader = Grader::default();
    for row in read_rows(&file)? {
        let text = |key: &str| row.value[key].as_str();
        let Some(gold) = text("gold") else {
            bail!("{} has no text under gold", row.place);
        };
        let verdict = match (
            text("answer"),
            text("completion"),
            text("pred"),
            text("kind"),
        ) {
            (Some(answer), ..) => grader.text(gold, answer),
            (_, Some(completion), ..) => grader.completion(gold, completion),
            (_, _, Some(pred), Some("response")) => grader.completion(gold, pred),
            (_, _, Some(pred), _) => grader.text(gold, pred),
            _ => bail!("{} has none of answer, completion and pred", row.place),
        };
        line(&verdict)?;
    }
    Ok(Outcome::Done)
}

fn line(verdict: &Verdict) -> Result<()> {
    super::print(&format!("{}\n", serde_json::to_string(verdict)?))
}
