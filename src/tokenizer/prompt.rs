//! The prompt a problem is asked with: `data.prompt_template`.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::Tokenizer;
use crate::config::DataConfig;
use crate::episode::Problem;

/// Names the place of the problem in a template of the user's own.
const PLACE: &str = "{problem}";

/// Says where the answer belongs. The box is left empty on purpose: a number
/// in it would be an answer that a model can copy.
const BOXED: &str = "Solve the problem step by step, then write the final answer in \\boxed{}.";

/// How a problem becomes a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptTemplate {
    /// For base models: the instruction, a blank line, `Problem: ` and the
    /// problem, a line break.
    Plain,
    /// The problem and the instruction as a user's message in the model's own
    /// chat template, with its generation prompt.
    Chat {
        /// Handed to the template; `None` leaves it its default.
        enable_thinking: Option<bool>,
    },
    /// Text with `{problem}` where the problem goes.
    Text(String),
}

impl PromptTemplate {
    /// Reads `data.prompt_template` and `data.enable_thinking`.
    pub fn from_config(config: &DataConfig) -> Result<Self> {
        let template = match config.prompt_template.as_str() {
            "plain" => PromptTemplate::Plain,
            "chat" => PromptTemplate::Chat {
                enable_thinking: config.enable_thinking,
            },
            text if text.contains(PLACE) => PromptTemplate::Text(text.to_string()),
            text => bail!(
                "data.prompt_template = {text:?} is neither a built-in name (plain, chat) nor text with {PLACE} in it"
            ),
        };
        ensure!(
            config.enable_thinking.is_none() || matches!(template, PromptTemplate::Chat { .. }),
            "data.enable_thinking is set, but only data.prompt_template = \"chat\" can hand it on; unset one"
        );
        Ok(template)
    }

    /// The prompt's text.
    pub fn render(&self, tokenizer: &Tokenizer, problem: &Problem) -> Result<String> {
        let statement = &problem.problem;
        match self {
            PromptTemplate::Plain => Ok(format!("{BOXED}\n\nProblem: {statement}\n")),
            PromptTemplate::Text(text) => Ok(text.replace(PLACE, statement)),
            PromptTemplate::Chat { enable_thinking } => {
                let message = json!({"role": "user", "content": format!("{statement}\n\n{BOXED}")});
                tokenizer
                    .render_chat(&[message], true, *enable_thinking)
                    .context("data.prompt_template = \"chat\"")
            }
        }
    }

    /// The prompt's ids, refused by the problem's name when there are more
    /// than `max_prompt_length` (`data.max_prompt_length`).
    pub fn ids(
        &self,
        tokenizer: &Tokenizer,
        problem: &Problem,
        max_prompt_length: usize,
    ) -> Result<Vec<u32>> {
        let ids = tokenizer.encode(&self.render(tokenizer, problem)?)?;
        ensure!(
            ids.len() <= max_prompt_length,
            "the prompt of problem {} has {} tokens, more than data.max_prompt_length = {max_prompt_length}: raise \
             the limit or drop the row",
            problem.id,
            ids.len()
        );
        ensure!(
            !ids.is_empty(),
            "the prompt of problem {} has no tokens",
            problem.id
        );
        Ok(ids)
    }
}
