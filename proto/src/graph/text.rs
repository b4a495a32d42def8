//! `Text`: bytes of a graph that never change, shared wherever the same words come again.
//!
//! A graph of a million jobs repeats few words (`cc`, `-c`, `PATH=/usr/bin:/bin`) and holds many that
//! come once. [`Recent`] shares the former and does not grow with the latter.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// Bytes as they stood in the graph; cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text(Arc<[u8]>);

impl Text {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A copy for a message.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Shares texts that come again soon.
pub(crate) type Texts = Recent<()>;

/// Remembers values by the bytes that they were made from, in a table of fixed size, a newer one in
/// place of an older one.
#[derive(Clone, Debug)]
pub(crate) struct Recent<T> {
    slots: Vec<Option<(Text, T)>>,
}

impl<T: Clone> Recent<T> {
    /// Slots of the table: a power of two, well above the number of words that programs repeat, and
    /// small enough for the processor's cache.
    const SLOTS: usize = 1 << 14;

    /// A table that remembers nothing yet.
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new() }
    }

    fn slot(&mut self, bytes: &[u8]) -> &mut Option<(Text, T)> {
        if self.slots.is_empty() {
            self.slots.resize(Self::SLOTS, None);
        }
        &mut self.slots[hash(bytes) as usize % Self::SLOTS]
    }

    /// The remembered value, else the one that `make` gives, remembered from now on.
    pub(crate) fn get_or<E>(
        &mut self,
        key: &Text,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let slot = self.slot(key.as_bytes());
        if let Some((known, value)) = slot
            && known == key
        {
            return Ok(value.clone());
        }
        let value = make()?;
        *slot = Some((key.clone(), value.clone()));
        Ok(value)
    }
}

/// A quick multiplicative hash (Knuth, TAOCP 6.4); whoever makes it collide gains nothing but a
/// table that remembers less.
fn hash(bytes: &[u8]) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(GOLDEN);
    }
    hash >> 32
}

impl Texts {
    /// The text of these bytes.
    pub(crate) fn text(&mut self, bytes: &[u8]) -> Text {
        let slot = self.slot(bytes);
        if let Some((known, _)) = slot
            && known.as_bytes() == bytes
        {
            return known.clone();
        }
        let text = Text::from(bytes);
        *slot = Some((text.clone(), ()));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_word_is_stored_once() {
        let mut recent = Texts::new();
        let one = recent.text(b"cc");
        let other = recent.text(b"cc");
        assert!(Arc::ptr_eq(&one.0, &other.0));
        assert_ne!(recent.text(b"ld"), one);
    }
}
