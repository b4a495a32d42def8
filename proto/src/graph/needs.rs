//! What a job or an action asks of the machine that runs it: properties and resources.

use std::sync::Arc;

use super::id::Record;
use crate::wire;

/// Properties that a worker must offer, sorted by name and then value; cheap to clone.
///
/// Jobs name each property once; REAPI lets a name stand with several values.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform(Arc<[(Box<str>, Box<str>)]>);

impl Platform {
    /// Sorts the properties and drops repetitions.
    pub fn new<N: Into<Box<str>>, V: Into<Box<str>>>(
        properties: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let mut sorted: Vec<(Box<str>, Box<str>)> =
            properties.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        sorted.sort_unstable();
        sorted.dedup();
        Self(sorted.into())
    }

    /// Whether any worker will do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The properties, name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The properties as messages.
    pub fn to_wire(&self) -> Vec<wire::PlatformProperty> {
        let property = |(name, value): (&str, &str)| wire::PlatformProperty {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        self.iter().map(property).collect()
    }

    /// The properties of messages.
    pub fn from_wire(properties: Vec<wire::PlatformProperty>) -> Self {
        Self::new(properties.into_iter().map(|property| (property.name, property.value)))
    }

    pub(crate) fn record(&self, record: &mut Record) {
        record.list(self.0.iter(), |record, (name, value)| {
            record.bytes(name.as_bytes());
            record.bytes(value.as_bytes());
        });
    }
}

impl Default for Platform {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

/// What to reserve on a worker while a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Resources {
    /// Thousandths of a core; above zero.
    pub milli_cores: u32,
    /// Memory in bytes; 0 reserves none.
    pub memory_bytes: u64,
}

impl Resources {
    /// Most thousandths of a core that a job can ask for.
    pub const MAX_MILLI_CORES: u32 = 4_096_000;
    /// Most memory in bytes that a job can ask for: 1 PiB.
    pub const MAX_MEMORY_BYTES: u64 = 1 << 50;
}

/// One core, no memory reserved.
impl Default for Resources {
    fn default() -> Self {
        Self { milli_cores: 1000, memory_bytes: 0 }
    }
}

impl From<Resources> for wire::Resources {
    fn from(resources: Resources) -> Self {
        Self { milli_cores: resources.milli_cores, memory_bytes: resources.memory_bytes }
    }
}

/// Absence and zero cores mean the default.
impl From<Option<wire::Resources>> for Resources {
    fn from(message: Option<wire::Resources>) -> Self {
        let default = Self::default();
        let Some(message) = message else {
            return default;
        };
        let milli_cores =
            if message.milli_cores == 0 { default.milli_cores } else { message.milli_cores };
        Self { milli_cores, memory_bytes: message.memory_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_sorted_and_stand_once() {
        let platform = Platform::new([("os", "linux"), ("arch", "x86_64"), ("os", "linux")]);
        assert_eq!(platform.iter().collect::<Vec<_>>(), [("arch", "x86_64"), ("os", "linux")]);
        assert_eq!(Platform::from_wire(platform.to_wire()), platform);
    }

    #[test]
    fn absent_resources_are_one_core() {
        assert_eq!(Resources::from(None), Resources { milli_cores: 1000, memory_bytes: 0 });
        let some = Resources { milli_cores: 500, memory_bytes: 7 };
        assert_eq!(Resources::from(Some(wire::Resources::from(some))), some);
    }
}
