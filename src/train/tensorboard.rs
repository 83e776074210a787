//! TensorBoard event files: scalars only, the two small formats by hand.
//!
//! A file is a sequence of TFRecords, each `length: u64`, masked CRC-32C of the
//! length, payload, masked CRC-32C of the payload, all little-endian. A payload
//! is a protobuf `Event`:
//!
//! ```text
//! Event      { 1 wall_time: double, 2 step: int64, 3 file_version: string,
//!              5 summary: Summary, 7 session_log: SessionLog }
//! Summary    { 1 value: repeated Value }
//! Value      { 1 tag: string, 2 simple_value: float }
//! SessionLog { 1 status: enum, 1 = START }
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

use super::metrics::Metrics;

/// Appends to an event file of its own.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Starts `events.out.tfevents.<seconds>.<host>` in `folder`. A run that is
    /// continued after `resumed_from` makes TensorBoard drop what earlier
    /// files say of later steps.
    pub fn create(folder: &Path, resumed_from: Option<usize>) -> anyhow::Result<Self> {
        let (file, path) = create_file(folder, seconds_now() as u64, &host())
            .with_context(|| format!("cannot create an event file in {}", folder.display()))?;
        let mut writer = EventWriter { file, path };
        writer.append(&version_event(seconds_now()))?;
        if let Some(step) = resumed_from {
            writer.append(&restart_event(seconds_now(), step + 1))?;
        }
        Ok(writer)
    }

    /// Where the events go.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends the numbers of one step.
    pub fn write(&mut self, step: usize, metrics: &Metrics) -> anyhow::Result<()> {
        self.append(&scalars_event(seconds_now(), step, metrics))
    }

    fn append(&mut self, event: &[u8]) -> anyhow::Result<()> {
        self.file
            .write_all(&record(event))
            .with_context(|| format!("cannot write to {}", self.path.display()))
    }
}

/// Another writer of the same second takes the next one.
fn create_file(folder: &Path, mut seconds: u64, host: &str) -> io::Result<(File, PathBuf)> {
    loop {
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.{host}"));
        match File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => seconds += 1,
            created => return Ok((created?, path)),
        }
    }
}

fn seconds_now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name: String = name.trim().chars().filter(|&c| plain(c)).collect();
    if name.is_empty() {
        "localhost".into()
    } else {
        name
    }
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(payload.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(payload);
    record.extend(masked_crc(payload).to_le_bytes());
    record
}

/// Rotated and offset, so that the CRC of data that holds CRCs stays strong.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

fn version_event(wall_time: f64) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, wall_time);
    event.bytes(3, b"brain.Event:2");
    event.0
}

fn restart_event(wall_time: f64, next_step: usize) -> Vec<u8> {
    const START: u64 = 1;
    let mut log = Message::default();
    log.integer(1, START);
    let mut event = Message::default();
    event.double(1, wall_time);
    event.integer(2, next_step as u64);
    event.bytes(7, &log.0);
    event.0
}

fn scalars_event(wall_time: f64, step: usize, metrics: &Metrics) -> Vec<u8> {
    let mut summary = Message::default();
    for (name, value) in metrics.iter() {
        let mut scalar = Message::default();
        scalar.bytes(1, name.as_bytes());
        scalar.float(2, value as f32);
        summary.bytes(1, &scalar.0);
    }
    let mut event = Message::default();
    event.double(1, wall_time);
    event.integer(2, step as u64);
    event.bytes(5, &summary.0);
    event.0
}

/// A protobuf message being written: a tag, then the value, per field.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn integer(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits a file into payloads, checking every length and CRC.
    fn payloads(mut file: &[u8]) -> Vec<Vec<u8>> {
        fn take<'a>(file: &mut &'a [u8], n: usize) -> &'a [u8] {
            let (head, tail) = file.split_at(n);
            *file = tail;
            head
        }
        let mut payloads = Vec::new();
        while !file.is_empty() {
            let length = take(&mut file, 8);
            assert_eq!(take(&mut file, 4), masked_crc(length).to_le_bytes());
            let length = u64::from_le_bytes(length.try_into().unwrap());
            let payload = take(&mut file, length as usize);
            assert_eq!(take(&mut file, 4), masked_crc(payload).to_le_bytes());
            payloads.push(payload.to_vec());
        }
        payloads
    }

    /// One field of a message: its number and the bytes of its value.
    fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(message: &mut &[u8]) -> u64 {
            let end = message.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
            let (head, tail) = message.split_at(end);
            *message = tail;
            head.iter()
                .rev()
                .fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
        }
        let mut fields = Vec::new();
        while !message.is_empty() {
            let tag = varint(&mut message);
            let length = match tag & 7 {
                0 => {
                    let value = varint(&mut message);
                    fields.push((tag >> 3, value.to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut message) as usize,
                5 => 4,
                wire => panic!("wire type {wire}"),
            };
            let (value, rest) = message.split_at(length);
            fields.push((tag >> 3, value.to_vec()));
            message = rest;
        }
        fields
    }

    /// How every event file begins: the length of the version event, 24, and
    /// its masked CRC.
    #[test]
    fn crc_is_castagnoli_and_masked() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let header = [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22];
        assert_eq!(record(&version_event(0.0))[..12], header);
    }

    #[test]
    fn what_is_written_decodes_to_what_was_said() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::from_iter([("train/reward", 0.25), ("train/loss", -300.5)]);
        let mut writer = EventWriter::create(dir.path(), Some(299)).unwrap();
        writer.write(300, &metrics).unwrap();

        let events = payloads(&fs::read(writer.path()).unwrap());
        assert_eq!(events.len(), 3);
        assert_eq!(fields(&events[0])[1], (3, b"brain.Event:2".to_vec()));

        let restart = fields(&events[1]);
        assert_eq!(restart[1], (2, 300u64.to_le_bytes().to_vec()));
        assert_eq!(fields(&restart[2].1), [(1, 1u64.to_le_bytes().to_vec())]);

        let scalars = fields(&events[2]);
        assert_eq!(scalars[1], (2, 300u64.to_le_bytes().to_vec()));
        let (number, summary) = &scalars[2];
        assert_eq!(*number, 5);
        let values: Vec<_> = fields(summary).iter().map(|(_, v)| fields(v)).collect();
        assert_eq!(
            values,
            [("train/reward", 0.25f32), ("train/loss", -300.5)].map(|(name, value)| vec![
                (1, name.as_bytes().to_vec()),
                (2, value.to_le_bytes().to_vec())
            ])
        );
    }

    #[test]
    fn two_writers_of_one_second_have_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let first = EventWriter::create(dir.path(), None).unwrap();
        let second = EventWriter::create(dir.path(), None).unwrap();
        assert_ne!(first.path(), second.path());
    }
}
