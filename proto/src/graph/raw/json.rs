//! Reads a graph file: JSON, one job after the other, in one pass.
//!
//! An unknown field or one that stands twice is noted with its place and the reading goes on, so that
//! all are reported together; text that is no JSON, or a value of the wrong type, ends it. A field
//! that is `null` counts as absent, since generators write empty lists so.

mod values;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{
    DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};

use self::values::{Environment, Pairs, Str};
use super::{RawCommand, RawGraph, RawJob, RawResources};
use crate::graph::error::{Fault, GraphError, GraphErrors, JobLabel, Position};
use crate::graph::suggest::nearest;
use crate::graph::text::Text;

impl RawGraph {
    /// Reads a graph file.
    ///
    /// # Errors
    /// Text that is no JSON or holds a value of the wrong type. Everything else that is wrong is kept
    /// for the validation.
    pub fn from_json(text: &[u8]) -> Result<Self, GraphErrors> {
        let mut reader = Reader::new(text);
        let mut file = File::default();
        let mut json = serde_json::Deserializer::from_slice(text);
        let object = Object { value: &mut file, reader: &mut reader };
        match object.deserialize(&mut json).and_then(|()| json.end()) {
            Ok(()) => Ok(reader.finish(file)),
            Err(error) => Err(reader.fail(&error)),
        }
    }
}

/// What is being read, and where.
struct Reader<'i> {
    graph: RawGraph,
    lines: Lines<'i>,
    /// The job at hand, by number and, once it has been read, by name.
    job: Option<JobLabel>,
    command: Option<usize>,
    field: &'static str,
    /// Faults of the job at hand, to be reported when its name is known.
    faults: Vec<(Option<Position>, Option<usize>, Fault)>,
}

impl<'i> Reader<'i> {
    fn new(text: &'i [u8]) -> Self {
        Self {
            graph: RawGraph::new(""),
            lines: Lines { text, at: 0, line: 1, line_start: 0 },
            job: None,
            command: None,
            field: "",
            faults: Vec::new(),
        }
    }

    fn fault(&mut self, key: &Str<'_>, fault: Fault) {
        if self.graph.errors.listed().len() + self.faults.len() >= GraphErrors::LISTED {
            self.graph.errors.count(1);
            return;
        }
        let position = self.lines.position(key);
        self.faults.push((position, self.command, fault));
    }

    fn report_faults(&mut self) {
        for (position, command, fault) in self.faults.drain(..) {
            let job = self.job.clone();
            self.graph.errors.push(GraphError { position, job, command, fault });
        }
    }

    fn report(&mut self, fault: Fault) {
        self.graph.errors.push(GraphError { position: None, job: None, command: None, fault });
    }

    fn finish(mut self, file: File) -> RawGraph {
        self.report_faults();
        match file.version {
            Some(crate::graph::VERSION) => {}
            Some(version) => self.report(Fault::Version(version)),
            None => self.report(Fault::MissingField("version")),
        }
        if !file.has_jobs {
            self.report(Fault::MissingField("jobs"));
        }
        self.graph.jobs = file.jobs;
        self.graph
    }

    fn fail(mut self, error: &serde_json::Error) -> GraphErrors {
        self.report_faults();
        let position =
            (error.line() > 0).then(|| Position { line: error.line(), column: error.column() });
        let text = error.to_string();
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        let text = match self.field {
            "" => text.to_owned(),
            field if error.is_data() => format!("field {field:?}: {text}"),
            _ => text.to_owned(),
        };
        let (job, command) = (self.job, self.command);
        let mut errors = self.graph.errors;
        errors.push(GraphError { position, job, command, fault: Fault::Json(text) });
        errors
    }
}

/// Finds line and column of places that come one after the other.
struct Lines<'i> {
    text: &'i [u8],
    at: usize,
    line: usize,
    line_start: usize,
}

impl Lines<'_> {
    /// Where a key stands that was borrowed from the text; unknown for one with escapes in it.
    fn position(&mut self, key: &Str<'_>) -> Option<Position> {
        let Cow::Borrowed(key) = key.0 else {
            return None;
        };
        let offset = (key.as_ptr() as usize).checked_sub(self.text.as_ptr() as usize)?;
        // The key's quotation mark is what people see first.
        let offset = offset.checked_sub(1).filter(|offset| *offset < self.text.len())?;
        if offset < self.at {
            (self.at, self.line, self.line_start) = (0, 1, 0);
        }
        for (at, byte) in self.text[..offset].iter().enumerate().skip(self.at) {
            if *byte == b'\n' {
                self.line += 1;
                self.line_start = at + 1;
            }
        }
        self.at = offset;
        Some(Position { line: self.line, column: offset - self.line_start + 1 })
    }
}

/// An object with known fields, filled one by one.
trait Fields {
    const EXPECTED: &'static str;
    const KNOWN: &'static [&'static str];
    /// Whether `null` stands for an object without fields.
    const MAY_BE_NULL: bool = false;

    /// Reads the value of the field `KNOWN[at]`.
    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        at: usize,
        map: &mut A,
        reader: &mut Reader<'_>,
    ) -> Result<(), A::Error>;
}

/// Reads an object into a value.
struct Object<'r, 'i, T> {
    value: &'r mut T,
    reader: &'r mut Reader<'i>,
}

impl<'de, T: Fields> DeserializeSeed<'de> for Object<'_, '_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Fields> Visitor<'de> for Object<'_, '_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        if T::MAY_BE_NULL { Ok(()) } else { Err(E::invalid_type(Unexpected::Unit, &self)) }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = 0_u32;
        while let Some(key) = map.next_key::<Str<'de>>()? {
            let at = T::KNOWN.iter().position(|known| *known == key.0);
            let fault = match at {
                Some(at) if seen & (1 << at) == 0 => {
                    seen |= 1 << at;
                    let outer = std::mem::replace(&mut self.reader.field, T::KNOWN[at]);
                    self.value.read(at, &mut map, self.reader)?;
                    self.reader.field = outer;
                    continue;
                }
                Some(_) => Fault::DuplicateField(key.0.to_string()),
                None => Fault::UnknownField {
                    field: key.0.to_string(),
                    suggestion: nearest(&key.0, T::KNOWN.iter().copied()).map(str::to_owned),
                },
            };
            self.reader.fault(&key, fault);
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// An object that is one of a list.
trait Item: Fields + Default {
    fn begin(reader: &mut Reader<'_>, number: usize);
    fn end(reader: &mut Reader<'_>);
}

/// Reads a list of objects, or `null`, to the end of a vector.
struct List<'r, 'i, T> {
    values: &'r mut Vec<T>,
    reader: &'r mut Reader<'i>,
}

impl<'de, T: Item> DeserializeSeed<'de> for List<'_, '_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Item> Visitor<'de> for List<'_, '_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list, each of it {}", T::EXPECTED)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        loop {
            let mut value = T::default();
            let number = self.values.len();
            let item = Nth { value: &mut value, reader: &mut *self.reader, number };
            if seq.next_element_seed(item)?.is_none() {
                return Ok(());
            }
            // Most lists of commands are of one, so room is not made for four at once.
            if self.values.len() == self.values.capacity() {
                self.values.reserve_exact(self.values.len().max(1));
            }
            self.values.push(value);
        }
    }
}

/// Reads one object of a list; after an error the reader still knows which.
struct Nth<'r, 'i, T> {
    value: &'r mut T,
    reader: &'r mut Reader<'i>,
    number: usize,
}

impl<'de, T: Item> DeserializeSeed<'de> for Nth<'_, '_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        T::begin(self.reader, self.number);
        Object { value: self.value, reader: &mut *self.reader }.deserialize(deserializer)?;
        T::end(self.reader);
        Ok(())
    }
}

/// The whole file.
#[derive(Default)]
struct File {
    version: Option<u64>,
    has_jobs: bool,
    jobs: Vec<RawJob>,
}

impl Fields for File {
    const EXPECTED: &'static str = "a graph (an object)";
    const KNOWN: &'static [&'static str] = &["version", "salt", "jobs"];

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        at: usize,
        map: &mut A,
        reader: &mut Reader<'_>,
    ) -> Result<(), A::Error> {
        match Self::KNOWN[at] {
            "version" => self.version = Some(map.next_value()?),
            "salt" => reader.graph.salt = shared(map.next_value()?),
            _ => {
                self.has_jobs = true;
                map.next_value_seed(List { values: &mut self.jobs, reader: &mut *reader })?;
            }
        }
        Ok(())
    }
}

impl Fields for RawJob {
    const EXPECTED: &'static str = "a job (an object)";
    const KNOWN: &'static [&'static str] = &[
        "id",
        "name",
        "inputs",
        "deps",
        "cmds",
        "platform",
        "timeout_ms",
        "resources",
        "env",
        "network",
        "cache",
        "salt",
    ];

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        at: usize,
        map: &mut A,
        reader: &mut Reader<'_>,
    ) -> Result<(), A::Error> {
        match Self::KNOWN[at] {
            "id" => self.id = owned(map.next_value()?).filter(|id| !id.is_empty()),
            "name" => {
                self.name = shared(map.next_value()?);
                if let Some(job) = &mut reader.job {
                    job.name = Arc::clone(&self.name);
                }
            }
            "inputs" => self.inputs = texts(map.next_value()?, reader),
            "deps" => self.deps = texts(map.next_value()?, reader),
            "cmds" => map.next_value_seed(List { values: &mut self.cmds, reader })?,
            "platform" => {
                let pairs: Option<Pairs<'de>> = map.next_value()?;
                let pairs = pairs.map_or_else(Vec::new, |pairs| pairs.0);
                let pairs: Vec<_> = pairs.iter().map(|(k, v)| (&*k.0, &*v.0)).collect();
                self.platform = reader.graph.platform(&pairs);
            }
            "timeout_ms" => self.timeout_ms = map.next_value()?,
            "resources" => map.next_value_seed(Object { value: &mut self.resources, reader })?,
            "env" => self.env = environment(map.next_value()?, reader),
            "network" => self.network = map.next_value::<Option<_>>()?.unwrap_or(false),
            "cache" => self.cache = map.next_value::<Option<_>>()?.unwrap_or(true),
            _ => self.salt = owned(map.next_value()?).unwrap_or_default(),
        }
        Ok(())
    }
}

impl Item for RawJob {
    fn begin(reader: &mut Reader<'_>, number: usize) {
        // What stood before the list is about the file.
        reader.report_faults();
        reader.job = Some(JobLabel { number, name: Arc::default() });
    }

    fn end(reader: &mut Reader<'_>) {
        reader.report_faults();
        reader.job = None;
    }
}

impl Fields for RawCommand {
    const EXPECTED: &'static str = "a command (an object)";
    const KNOWN: &'static [&'static str] =
        &["exec", "environ", "working_directory", "cat_template", "cat_output"];

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        at: usize,
        map: &mut A,
        reader: &mut Reader<'_>,
    ) -> Result<(), A::Error> {
        match Self::KNOWN[at] {
            "exec" => {
                let words: Option<Vec<Str<'de>>> = map.next_value()?;
                self.exec = words.map(|words| reader.graph.texts(&words));
            }
            "environ" => self.environ = environment(map.next_value()?, reader),
            "working_directory" => self.working_directory = text(map.next_value()?, reader),
            "cat_template" => self.cat_template = text(map.next_value()?, reader),
            _ => self.cat_output = text(map.next_value()?, reader),
        }
        Ok(())
    }
}

impl Item for RawCommand {
    fn begin(reader: &mut Reader<'_>, number: usize) {
        reader.command = Some(number);
    }

    fn end(reader: &mut Reader<'_>) {
        reader.command = None;
    }
}

impl Fields for RawResources {
    const EXPECTED: &'static str = "resources (an object)";
    const KNOWN: &'static [&'static str] = &["cores", "memory_bytes"];
    const MAY_BE_NULL: bool = true;

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        at: usize,
        map: &mut A,
        _: &mut Reader<'_>,
    ) -> Result<(), A::Error> {
        match Self::KNOWN[at] {
            "cores" => self.cores = map.next_value()?,
            _ => self.memory_bytes = map.next_value()?,
        }
        Ok(())
    }
}

fn shared(text: Option<Str<'_>>) -> Arc<str> {
    text.map_or_else(Arc::default, |text| text.0.as_ref().into())
}

fn owned(text: Option<Str<'_>>) -> Option<Box<str>> {
    text.map(|text| text.0.into_owned().into())
}

fn text(text: Option<Str<'_>>, reader: &mut Reader<'_>) -> Option<Text> {
    text.and_then(|text| reader.graph.filled(text.as_ref()))
}

fn texts(words: Option<Vec<Str<'_>>>, reader: &mut Reader<'_>) -> Box<[Text]> {
    reader.graph.texts(&words.unwrap_or_default())
}

fn environment(environment: Option<Environment<'_>>, reader: &mut Reader<'_>) -> Box<[Text]> {
    match environment {
        None => Box::default(),
        Some(Environment::List(list)) => reader.graph.texts(&list),
        Some(Environment::Pairs(Pairs(pairs))) => {
            let mut entries = Vec::with_capacity(pairs.len());
            for (name, value) in pairs {
                if name.0.contains('=') {
                    reader.fault(&name, Fault::EnvironName(name.0.to_string()));
                } else {
                    entries.push(format!("{}={}", name.0, value.0));
                }
            }
            reader.graph.texts(&entries)
        }
    }
}

#[cfg(test)]
mod tests;
