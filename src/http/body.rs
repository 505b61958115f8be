//! Chunked bodies, unpacked as they arrive (RFC 9112, 7.1). Pure.

use super::{Refusal, Status};

/// Longest line that gives the size of a chunk. Chunk extensions are checked, and have no effect.
const SIZE_LINE_BYTES_MAX: usize = 256;
/// Longest trailer section. Trailers are checked, and have no effect.
const TRAILER_BYTES_MAX: usize = 8 << 10;

/// The refusal of a body over its limit.
pub const BODY_TOO_LONG: Refusal =
    Refusal::new(Status::PayloadTooLarge, "the request body is longer than a value may be");
const MALFORMED: Refusal = Refusal::new(Status::BadRequest, "the chunked request body is malformed");

/// Unpacks one body.
#[derive(Debug, Default)]
pub struct Chunked {
    body: Vec<u8>,
    state: State,
    trailer_bytes: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the size of a chunk.
    #[default]
    Size,
    /// Within a chunk, with this many bytes to come.
    Data(usize),
    /// Before the CR LF that ends a chunk.
    DataEnd,
    /// After the last chunk.
    Trailer,
    /// Complete.
    Done,
}

impl Chunked {
    /// Takes as much as possible from the front of `bytes` and returns how many bytes that was. Call it again with the
    /// rest, followed by what arrives next.
    ///
    /// # Errors
    /// 400 for a malformed body, 413 for one over `bytes_max`.
    pub fn take(&mut self, bytes: &[u8], bytes_max: usize) -> Result<usize, Refusal> {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            match self.state {
                State::Size => {
                    let Some(line) = line(rest, SIZE_LINE_BYTES_MAX)? else { return Ok(at) };
                    let size = chunk_size(line)?;
                    if bytes_max - self.body.len() < size {
                        return Err(BODY_TOO_LONG);
                    }
                    at += line.len() + 2;
                    self.state = if size == 0 { State::Trailer } else { State::Data(size) };
                }
                State::Data(left) => {
                    let count = left.min(rest.len());
                    self.body.extend_from_slice(&rest[..count]);
                    at += count;
                    if count < left {
                        self.state = State::Data(left - count);
                        return Ok(at);
                    }
                    self.state = State::DataEnd;
                }
                State::DataEnd => {
                    let Some(end) = rest.get(..2) else { return Ok(at) };
                    if end != b"\r\n" {
                        return Err(MALFORMED);
                    }
                    at += 2;
                    self.state = State::Size;
                }
                State::Trailer => {
                    let Some(line) = line(rest, TRAILER_BYTES_MAX)? else { return Ok(at) };
                    at += line.len() + 2;
                    self.trailer_bytes += line.len() + 2;
                    if line.is_empty() {
                        self.state = State::Done;
                    } else if TRAILER_BYTES_MAX < self.trailer_bytes || !is_field(line) {
                        return Err(MALFORMED);
                    }
                }
                State::Done => return Ok(at),
            }
        }
    }

    /// Whether the body is complete.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The body, without memory that was meant for more.
    pub fn into_body(mut self) -> Vec<u8> {
        self.body.shrink_to_fit();
        self.body
    }

    /// The body so far.
    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

/// The line at the front of `bytes`, without its CR LF; `None` if it has not arrived whole.
fn line(bytes: &[u8], bytes_max: usize) -> Result<Option<&[u8]>, Refusal> {
    match memchr::memchr(b'\n', bytes) {
        Some(end) if bytes_max < end => Err(MALFORMED),
        Some(end) => match bytes[..end].split_last() {
            Some((b'\r', line)) if !line.contains(&b'\r') => Ok(Some(line)),
            _ => Err(MALFORMED),
        },
        None if bytes_max < bytes.len() => Err(MALFORMED),
        None => Ok(None),
    }
}

fn chunk_size(line: &[u8]) -> Result<usize, Refusal> {
    let count = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, extensions) = line.split_at(count);
    if digits.is_empty() || 15 < digits.len() || !are_extensions(extensions) {
        return Err(MALFORMED);
    }
    digits.iter().try_fold(0, |size: usize, byte| {
        let digit = char::from(*byte).to_digit(16).ok_or(MALFORMED)?;
        Ok(size * 16 + digit as usize)
    })
}

/// Whether `text` is any number of chunk extensions: `;name`, `;name=token` or `;name="quoted"`, perhaps with blanks
/// around each part (RFC 9112, 7.1.1).
fn are_extensions(mut text: &[u8]) -> bool {
    while !text.is_empty() {
        let Some(rest) = skip_blanks(text).strip_prefix(b";") else { return false };
        let Some(rest) = skip_token(skip_blanks(rest)) else { return false };
        text = rest;
        if let Some(value) = skip_blanks(rest).strip_prefix(b"=") {
            let value = skip_blanks(value);
            let Some(rest) = skip_token(value).or_else(|| skip_quoted(value)) else { return false };
            text = rest;
        }
    }
    true
}

/// Whether `line` is a header field (RFC 9112, 5).
fn is_field(line: &[u8]) -> bool {
    let value = skip_token(line).and_then(|rest| rest.strip_prefix(b":"));
    value.is_some_and(|value| value.iter().all(|byte| is_text(*byte)))
}

/// Blanks, visible characters, and everything that is not ASCII.
fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

fn skip_blanks(text: &[u8]) -> &[u8] {
    let count = text.iter().take_while(|byte| b" \t".contains(byte)).count();
    &text[count..]
}

/// What follows the token at the front; `None` if there is none.
fn skip_token(text: &[u8]) -> Option<&[u8]> {
    let is_token = |byte: &&u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let count = text.iter().take_while(is_token).count();
    (0 < count).then(|| &text[count..])
}

/// What follows the quoted string at the front; `None` if there is none.
fn skip_quoted(text: &[u8]) -> Option<&[u8]> {
    let mut rest = text.strip_prefix(b"\"")?;
    loop {
        rest = match rest {
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', byte, rest @ ..] if is_text(*byte) => rest,
            [byte, rest @ ..] if is_text(*byte) && *byte != b'\\' => rest,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] =
        b"4\r\nWiki\r\n6;ext=1\r\npedia \r\n0d\r\nin \r\n\r\nchunks\r\n0\r\nTrailer: x\r\n\r\nNEXT";

    #[test]
    fn unpacks_the_same_however_the_bytes_arrive() {
        for step in 1..BODY.len() {
            let (mut chunked, mut pending, mut taken) = (Chunked::default(), Vec::new(), 0);
            for piece in BODY.chunks(step) {
                pending.extend_from_slice(piece);
                let count = chunked.take(&pending, 100).unwrap();
                pending.drain(..count);
                taken += count;
            }
            assert!(chunked.is_done());
            assert_eq!(chunked.body(), b"Wikipedia in \r\n\r\nchunks");
            assert_eq!(&BODY[taken..], b"NEXT");
        }
    }

    #[test]
    fn h1_malformed_chunks_are_refused_and_limits_hold() {
        let status = |body: &str| Chunked::default().take(body.as_bytes(), 100).map_err(|r| r.status.code());
        for body in [
            "\r\n",
            "+4\r\n",
            "-4\r\n",
            "0x4\r\n",
            "4_0\r\n",
            " 4\r\n",
            "4 \r\n",
            "g\r\n",
            "4\n",
            "4\r\nWikixx",
            "1234567890123456\r\n",
            "\r4\r\n",
            "4\x0c;a\r\n",
            "4;\r\n",
            "4;;a\r\n",
            "4;a=\r\n",
            "4;a b\r\n",
            "4;a=\"b\r\n",
            "4;a=\"b\"c\r\n",
            "4;a\0\r\n",
            "0\r\nno field\r\n",
            "0\r\nPOST /set?key=k&value=v HTTP/1.1\r\n",
            "0\r\n: no name\r\n",
            "0\r\nA : b\r\n",
            "0\r\nA: b\r\n folded\r\n",
            "0\r\nA: \0\r\n",
            "0\r\nA: \x7f\r\n",
        ] {
            assert_eq!(status(body), Err(400), "{body:?}");
        }
        for body in ["4;a\r\n", "4 ; a = b ;c=\"d \\\" e\"\r\n", "0\r\nA:\r\nB-c: d\te\r\n\r\n"] {
            assert_eq!(status(body), Ok(body.len()), "{body:?}");
        }
        assert_eq!(status(&format!("4;{}", "x".repeat(300))), Err(400));
        assert_eq!(status(&format!("0\r\n{}", "A: b\r\n".repeat(2_000))), Err(400));
        assert_eq!(status("65\r\n"), Err(413));
        assert_eq!(status("fffffffffffffff\r\n"), Err(413));
        let mut chunked = Chunked::default();
        let count = chunked.take(b"64\r\n", 100).unwrap();
        assert_eq!(count, 4, "exactly the limit is allowed");
    }

    #[test]
    fn h2_memory_follows_the_bytes_that_arrived_and_not_the_size_of_a_chunk() {
        let bytes_max = 1 << 30;
        let mut chunked = Chunked::default();
        chunked.take(b"3fffffff\r\n", bytes_max).unwrap();
        for arrived in (1..100).map(|pieces| 1_000 * pieces) {
            chunked.take(&[b'v'; 1_000], bytes_max).unwrap();
            let bytes = chunked.body.capacity();
            assert!(bytes <= 2 * arrived, "{bytes} bytes for {arrived}");
        }
    }
}
