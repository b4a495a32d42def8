//! `Digest`: the name of a blob, parsed once and valid for ever after.
//!
//! A digest is a hash function, the hash, and the size. Two digests are the same blob only if all
//! three are equal: SHA-256 and BLAKE3 have hashes of one length, so the function is never implied.

use std::fmt;

use sha1::Digest as _;

/// A hash function that names blobs. The numbers are those of REAPI's `DigestFunction.Value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DigestFunction {
    /// SHA-256, 32 bytes.
    Sha256 = 1,
    /// SHA-1, 20 bytes.
    Sha1 = 2,
    /// BLAKE3, 32 bytes; the default of native builds.
    Blake3 = 9,
}

impl DigestFunction {
    /// Every function, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha1, Self::Blake3];

    /// Length of a hash in bytes.
    pub const fn hash_len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 | Self::Blake3 => 32,
        }
    }

    /// Lower-case name, as in paths and on the command line: `sha1`, `sha256`, `blake3`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Blake3 => "blake3",
        }
    }

    /// The function with this number on the wire.
    pub fn from_number(number: i32) -> Result<Self, DigestError> {
        Self::ALL
            .into_iter()
            .find(|function| *function as i32 == number)
            .ok_or(DigestError::UnknownFunctionNumber(number))
    }

    /// A hasher for bytes that arrive in pieces.
    pub fn hasher(self) -> Hasher {
        let state = match self {
            Self::Sha1 => State::Sha1(sha1::Sha1::new()),
            Self::Sha256 => State::Sha256(sha2::Sha256::new()),
            Self::Blake3 => State::Blake3(Box::new(blake3::Hasher::new())),
        };
        Hasher { state, size_bytes: 0 }
    }

    /// The digest of bytes at hand.
    pub fn digest(self, data: &[u8]) -> Digest {
        let mut hasher = self.hasher();
        hasher.update(data);
        hasher.finish()
    }
}

impl fmt::Display for DigestFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DigestFunction {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::ALL
            .into_iter()
            .find(|function| function.name() == text)
            .ok_or_else(|| DigestError::UnknownFunction(text.to_owned()))
    }
}

/// Hashes bytes that arrive in pieces and counts them.
#[derive(Clone, Debug)]
pub struct Hasher {
    state: State,
    size_bytes: u64,
}

#[derive(Clone, Debug)]
enum State {
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.size_bytes += data.len() as u64;
        match &mut self.state {
            State::Sha1(hasher) => hasher.update(data),
            State::Sha256(hasher) => hasher.update(data),
            State::Blake3(hasher) => {
                hasher.update(data);
            }
        }
    }

    /// Bytes added so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        let mut hash = [0; 32];
        let function = match self.state {
            State::Sha1(hasher) => {
                hash[..20].copy_from_slice(&hasher.finalize());
                DigestFunction::Sha1
            }
            State::Sha256(hasher) => {
                hash.copy_from_slice(&hasher.finalize());
                DigestFunction::Sha256
            }
            State::Blake3(hasher) => {
                hash.copy_from_slice(hasher.finalize().as_bytes());
                DigestFunction::Blake3
            }
        };
        Digest { hash, size_bytes: self.size_bytes, function }
    }
}

/// The name of a blob: hash function, hash and size in bytes.
///
/// A SHA-1 hash fills the first 20 bytes of `hash`; the rest is zero, so that comparison is
/// comparison of all fields.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    hash: [u8; 32],
    size_bytes: u64,
    function: DigestFunction,
}

impl Digest {
    /// A digest from a hash of the function's length.
    pub fn new(
        function: DigestFunction,
        hash: &[u8],
        size_bytes: u64,
    ) -> Result<Self, DigestError> {
        if hash.len() != function.hash_len() {
            return Err(DigestError::HashLength { function, len: hash.len() });
        }
        let mut bytes = [0; 32];
        bytes[..hash.len()].copy_from_slice(hash);
        Ok(Self { hash: bytes, size_bytes, function })
    }

    /// The digest of a blob with this BLAKE3 hash.
    pub const fn blake3(hash: [u8; 32], size_bytes: u64) -> Self {
        Self { hash, size_bytes, function: DigestFunction::Blake3 }
    }

    /// A digest from a hash in lower-case hexadecimal.
    pub fn from_hex(
        function: DigestFunction,
        hex: &str,
        size_bytes: u64,
    ) -> Result<Self, DigestError> {
        let mut bytes = [0; 32];
        let len = function.hash_len();
        if hex.len() != 2 * len {
            return Err(DigestError::HashLength { function, len: hex.len() / 2 });
        }
        parse_hex(hex, &mut bytes[..len])?;
        Ok(Self { hash: bytes, size_bytes, function })
    }

    /// The function that made the hash.
    pub fn function(&self) -> DigestFunction {
        self.function
    }

    /// The hash: 20 or 32 bytes.
    pub fn hash(&self) -> &[u8] {
        &self.hash[..self.function.hash_len()]
    }

    /// Size of the blob in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The hash in lower-case hexadecimal.
    pub fn hex(&self) -> String {
        to_hex(self.hash())
    }
}

/// `blake3:ab…ef-1234`, as in logs and errors.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}-{}", self.function, self.hex(), self.size_bytes)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Lower-case hexadecimal of bytes.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

/// Parses lower-case hexadecimal of exactly `2 * out.len()` digits.
///
/// # Errors
/// Any other length, upper case, or a character that is no digit.
pub fn parse_hex(hex: &str, out: &mut [u8]) -> Result<(), DigestError> {
    fn digit(byte: u8) -> Option<u8> {
        match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        }
    }
    let text = hex.as_bytes();
    if text.len() != 2 * out.len() {
        return Err(DigestError::NotHex(hex.to_owned()));
    }
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        match (digit(pair[0]), digit(pair[1])) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return Err(DigestError::NotHex(hex.to_owned())),
        }
    }
    Ok(())
}

/// Why bytes or text are no digest.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// No function has this number.
    #[error("unknown digest function number {0}")]
    UnknownFunctionNumber(i32),
    /// No function has this name.
    #[error("unknown digest function {0:?}, known are sha1, sha256 and blake3")]
    UnknownFunction(String),
    /// The hash is too short or too long for its function.
    #[error("a {function} hash has {} bytes, not {len}", function.hash_len())]
    HashLength {
        /// The function that was named.
        function: DigestFunction,
        /// Length of the hash that came, in bytes.
        len: usize,
    },
    /// The text is not lower-case hexadecimal of the right length.
    #[error("{0:?} is not a lower-case hexadecimal hash")]
    NotHex(String),
    /// A message lacks its digest.
    #[error("a digest is missing")]
    Missing,
    /// A size below zero.
    #[error("a size of {0} bytes is below zero")]
    NegativeSize(i64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_functions_give_their_published_values() {
        let hex = |function: DigestFunction| function.digest(b"abc").hex();
        assert_eq!(hex(DigestFunction::Sha1), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(
            hex(DigestFunction::Sha256),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            hex(DigestFunction::Blake3),
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
        );
    }

    #[test]
    fn upper_case_and_wrong_lengths_are_refused() {
        let lower = DigestFunction::Sha1.digest(b"x").hex();
        assert!(Digest::from_hex(DigestFunction::Sha1, &lower, 1).is_ok());
        assert!(Digest::from_hex(DigestFunction::Sha1, &lower.to_uppercase(), 1).is_err());
        assert!(Digest::from_hex(DigestFunction::Sha256, &lower, 1).is_err());
    }

    #[test]
    fn the_same_hash_with_another_size_is_another_digest() {
        let one = DigestFunction::Blake3.digest(b"x");
        let other = Digest::new(DigestFunction::Blake3, one.hash(), 2).unwrap();
        assert_ne!(one, other);
    }
}
