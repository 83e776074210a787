//! `--profile-steps` of a training run: when to record, and where it goes.

use std::path::Path;

use anyhow::Result;

use crate::config::UsageError;
use crate::device::Ctx;
use crate::model::engine::Engine;
use crate::model::half_layer::HalfLayers;
use crate::profile::ops::OpTable;
use crate::profile::roof::Roof;
use crate::profile::steps::StepRange;
use crate::profile::{self, Profile, Range, Recording, trace};
use crate::train::run_dir::write_atomic;

/// The profile of some of a run's steps, if one is asked for.
#[derive(Default)]
pub struct Profiling {
    asked: Option<(StepRange, Roof)>,
    /// The step under way. It ends before its recording does.
    step: Option<Range>,
    recording: Option<Recording>,
    profile: Option<Profile>,
}

impl Profiling {
    /// `asked` for of a run from step `first` to `last`, both counted in.
    /// Measures the device's roof, which wants memory: before the run takes its
    /// own.
    ///
    /// # Errors
    /// The run has no such steps: a [`UsageError`].
    pub fn new<D: HalfLayers>(
        device: &D,
        asked: Option<StepRange>,
        first: usize,
        last: usize,
    ) -> Result<Profiling> {
        let Some(steps) = asked else {
            return Ok(Profiling::default());
        };
        if steps.first < first || steps.last > last {
            return Err(UsageError::new(format!(
                "--profile-steps {}:{}: the run goes from step {first} to {last}",
                steps.first, steps.last
            ))
            .into());
        }
        let stream = device.new_stream()?;
        let roof = Roof::measure(device, &Ctx { stream: &stream })?;
        Ok(Profiling {
            asked: Some((steps, roof)),
            ..Profiling::default()
        })
    }

    /// Before a step, counted from 1.
    pub fn before<D: HalfLayers>(&mut self, step: usize, engine: &Engine<D>) -> Result<()> {
        if self.asked.is_some_and(|(steps, _)| steps.first == step) {
            self.recording = Some(Recording::start(&engine.device, &engine.ctx())?);
            engine.device.collect(true)?;
        }
        self.step = Some(profile::step(step));
        Ok(())
    }

    /// After it.
    pub fn after<D: HalfLayers>(&mut self, step: usize, engine: &Engine<D>) -> Result<()> {
        self.step = None;
        if self.asked.is_some_and(|(steps, _)| steps.last == step) {
            self.end(engine)?;
        }
        Ok(())
    }

    /// End the recording, if one is under way: what there is of it is kept.
    pub fn end<D: HalfLayers>(&mut self, engine: &Engine<D>) -> Result<()> {
        if let Some(recording) = self.recording.take() {
            engine.device.collect(false)?;
            self.profile = Some(recording.finish(&engine.device, &engine.ctx())?);
        }
        Ok(())
    }

    /// Write `trace.json` and the table by op, `profile.json`, into the run's
    /// folder; the table for people, if there was anything to profile.
    pub fn report(&self, run: &Path, device: &str) -> Result<Option<String>> {
        let (Some(profile), Some((_, roof))) = (&self.profile, &self.asked) else {
            return Ok(None);
        };
        let table = OpTable::new(profile);
        let file = run.join("trace.json");
        trace::write(&file, profile, device)?;
        let json = serde_json::to_string_pretty(&table.json(roof))?;
        write_atomic(&run.join("profile.json"), json.as_bytes())?;
        Ok(Some(format!(
            "profile: {}trace: {}\n",
            table.text(roof),
            file.display()
        )))
    }
}
