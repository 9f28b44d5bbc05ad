//! WebSocket framing, as little of it as a load generator needs.

/// A server's frame within a buffer.
pub struct Frame {
    pub opcode: u8,
    /// Where its payload starts and ends.
    pub start: usize,
    pub end: usize,
}

/// The frame at the start of `buffer`, if it is all there. Servers do not mask.
pub fn first(buffer: &[u8]) -> Option<Frame> {
    let [head, length, rest @ ..] = buffer else { return None };
    let (start, length) = match length & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(rest.get(..8)?.try_into().ok()?)).ok()?),
        short => (2, usize::from(short)),
    };
    let end = start + length;
    (buffer.len() >= end).then_some(Frame { opcode: head & 0x0f, start, end })
}

/// A client's text frame. The mask is zero, which leaves the text as it is.
pub fn text(text: &str) -> Vec<u8> {
    let mut out = vec![0x81];
    match u16::try_from(text.len()) {
        Ok(length) if length < 126 => out.push(0x80 | u8::try_from(length).expect("below 126")),
        Ok(length) => {
            out.push(0x80 | 126);
            out.extend(length.to_be_bytes());
        }
        Err(_) => {
            out.push(0x80 | 127);
            out.extend((text.len() as u64).to_be_bytes());
        }
    }
    out.extend([0; 4]);
    out.extend(text.as_bytes());
    out
}
