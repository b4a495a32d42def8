//! Zstandard: what goes out compressed, and what comes in, within bounds.

use std::io::{self, BufReader, Read, Write};

use zstd::stream::{read, write};

/// Fast rather than small: the farm's network is a fast one.
const LEVEL: i32 = 1;
/// Largest window of a frame that is taken: 8 MiB, which RFC 8878 wants every decoder to have and few encoders exceed.
const MAX_WINDOW_LOG: u32 = 23;
/// Below this size nothing is gained.
const MIN_BYTES: usize = 128;

/// One frame with these bytes, if that is smaller.
pub(crate) fn compress(data: &[u8]) -> Option<Vec<u8>> {
    if data.len() < MIN_BYTES {
        return None;
    }
    let compressed = zstd::bulk::compress(data, LEVEL).ok()?;
    (compressed.len() < data.len()).then_some(compressed)
}

/// What frames hold, one byte more than expected at most: enough to see that it is too much.
///
/// # Errors
/// Anything but whole frames.
pub(crate) fn decompress(frames: &[u8], expected_bytes: usize) -> io::Result<Vec<u8>> {
    let mut decoder = read::Decoder::with_buffer(frames)?;
    decoder.window_log_max(MAX_WINDOW_LOG)?;
    let mut data = Vec::new();
    decoder.take(expected_bytes as u64 + 1).read_to_end(&mut data)?;
    Ok(data)
}

/// A frame with what a source has.
///
/// # Errors
/// No memory.
pub(crate) fn compressed<R: Read>(source: R) -> io::Result<read::Encoder<'static, BufReader<R>>> {
    read::Encoder::new(source, LEVEL)
}

/// Writes what the frames that are written to it hold to `out`.
///
/// # Errors
/// No memory.
pub(crate) fn decoder<W: Write>(out: W) -> io::Result<write::Decoder<'static, W>> {
    let mut decoder = write::Decoder::new(out)?;
    decoder.window_log_max(MAX_WINDOW_LOG)?;
    Ok(decoder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_comes_out_again_whether_in_one_frame_or_several() {
        let data = b"abc".repeat(1000);
        let frame = compress(&data).unwrap();
        assert_eq!(decompress(&frame, data.len()).unwrap(), data);
        let two = [&frame[..], &frame].concat();
        assert_eq!(decompress(&two, 2 * data.len()).unwrap(), data.repeat(2));
        assert_eq!(compress(b"small"), None);
    }

    #[test]
    fn a_source_is_compressed_as_it_is_read() {
        let data = b"abc".repeat(1000);
        let mut frame = Vec::new();
        compressed(&data[..]).unwrap().read_to_end(&mut frame).unwrap();
        assert!(frame.len() < 100);
        assert_eq!(decompress(&frame, data.len()).unwrap(), data);
    }

    #[test]
    fn a_bomb_gives_one_byte_too_many_and_no_more() {
        let bomb = compress(&vec![0; 64 << 20]).unwrap();
        assert_eq!(decompress(&bomb, 100).unwrap().len(), 101);
    }

    #[test]
    fn what_is_no_whole_frame_is_refused() {
        let frame = compress(&b"abc".repeat(1000)).unwrap();
        assert!(decompress(&frame[..frame.len() - 1], 3000).is_err());
        assert!(decompress(b"no frame at all", 3000).is_err());
        let mut out = Vec::new();
        let mut half = decoder(&mut out).unwrap();
        half.write_all(&frame[..frame.len() - 1]).unwrap();
        assert!(half.finish().is_err());
    }

    #[test]
    fn a_frame_that_needs_a_large_window_is_refused() {
        let mut encoder = write::Encoder::new(Vec::new(), LEVEL).unwrap();
        encoder.window_log(MAX_WINDOW_LOG + 1).unwrap();
        encoder.write_all(&[0; 1000]).unwrap();
        let frame = encoder.finish().unwrap();
        assert!(decompress(&frame, 1000).is_err());
    }
}
