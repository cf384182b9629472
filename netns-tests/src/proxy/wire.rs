//! As much of Postgres's protocol as the proxy needs, on connections without TLS: who listens, and which messages are notifications.

const NOTIFICATION: u8 = b'A';
/// A message: its kind, then its length (big-endian, counts itself), then its content.
const HEADER_BYTES: usize = 5;

/// Whether what a client sent asks for notifications.
pub(super) fn says_listen(chunk: &[u8]) -> bool {
    chunk.windows(7).any(|bytes| bytes == b"LISTEN ")
}

/// What the database says, cut into its messages.
#[derive(Default)]
pub(super) struct Answers {
    waiting: Vec<u8>,
    begun: bool,
}

impl Answers {
    /// What of `chunk` is to be passed on; the beginning of a message waits for its end.
    pub(super) fn pass(&mut self, chunk: &[u8], without_notifications: bool) -> Vec<u8> {
        self.waiting.extend_from_slice(chunk);
        let mut passed = Vec::with_capacity(self.waiting.len());
        // The answer to the wish for TLS is one byte; the first message is never of these kinds.
        if !self.begun && matches!(self.waiting.first(), Some(b'N' | b'S')) {
            passed.push(self.waiting.remove(0));
        }
        self.begun = true;
        while let Some(length) = self.first_length() {
            let message: Vec<u8> = self.waiting.drain(..length).collect();
            if !(without_notifications && message.first() == Some(&NOTIFICATION)) {
                passed.extend(message);
            }
        }
        passed
    }

    /// The first message's length, when all of it is here.
    fn first_length(&self) -> Option<usize> {
        let bytes: [u8; 4] = self.waiting.get(1..HEADER_BYTES)?.try_into().ok()?;
        let length = 1 + usize::try_from(u32::from_be_bytes(bytes)).ok()?;
        (self.waiting.len() >= length).then_some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len() + 4).unwrap().to_be_bytes();
        [&[kind], &length[..], content].concat()
    }

    #[test]
    fn notifications_are_taken_out_wherever_the_chunks_are_cut() {
        let stream =
            [b"N".to_vec(), message(b'R', &[0; 4]), message(b'A', b"x"), message(b'Z', b"I")].concat();
        let expected = [b"N".to_vec(), message(b'R', &[0; 4]), message(b'Z', b"I")].concat();
        for size in 1..=stream.len() {
            let mut answers = Answers::default();
            let passed: Vec<u8> = stream.chunks(size).flat_map(|chunk| answers.pass(chunk, true)).collect();
            assert_eq!(passed, expected, "in chunks of {size}");
        }
        assert_eq!(Answers::default().pass(&stream, false), stream);
    }

    #[test]
    fn who_listens_is_recognised() {
        assert!(says_listen(b"Q\0\0\0\x14LISTEN holdfast\0"));
        assert!(!says_listen(b"Q\0\0\0\x0dSELECT 1\0"));
    }
}
