//! Where HTTP/2's frames begin and end.

/// The header of a frame.
const HEADER: usize = 9;

/// Where in its frames an output is.
#[derive(Clone, Copy, Default)]
pub(super) struct Frames {
    /// The beginning of a header whose rest has not passed.
    header: [u8; HEADER],
    known: usize,
    /// What is left of the present frame after its header.
    left: usize,
    /// The last frame is continued by the next, and nothing may come between.
    is_continued: bool,
}

impl Frames {
    /// Whether a frame may be put in here.
    pub(super) fn is_between(&self) -> bool {
        self.known == 0 && self.left == 0 && !self.is_continued
    }

    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.step(bytes)..];
        }
    }

    /// Where that frame begins.
    pub(super) fn find(mut self, frame: &[u8], bytes: &[u8]) -> Option<usize> {
        let mut place = 0;
        while place < bytes.len() {
            if self.is_between() && bytes[place..].starts_with(frame) {
                return Some(place);
            }
            place += self.step(&bytes[place..]);
        }
        None
    }

    /// Passes the rest of a header or of a frame; how much that was.
    fn step(&mut self, bytes: &[u8]) -> usize {
        if self.left > 0 {
            let passed = self.left.min(bytes.len());
            self.left -= passed;
            return passed;
        }
        let passed = (HEADER - self.known).min(bytes.len());
        self.header[self.known..][..passed].copy_from_slice(&bytes[..passed]);
        self.known += passed;
        if self.known == HEADER {
            self.known = 0;
            self.begin();
        }
        passed
    }

    /// The header of a frame is complete.
    fn begin(&mut self) {
        const HEADERS: u8 = 1;
        const PUSH_PROMISE: u8 = 5;
        const CONTINUATION: u8 = 9;
        const END_HEADERS: u8 = 4;
        let [a, b, c, kind, flags, ..] = self.header;
        self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.is_continued =
            matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION) && flags & END_HEADERS == 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUGHT: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, flags, 0, 0, 0, 1][..], &vec![7; length.into()]].concat()
    }

    #[test]
    fn a_frame_is_found_between_frames_only() {
        let mut bytes = frame(0, 0, 30);
        bytes[12..29].copy_from_slice(&SOUGHT);
        assert_eq!(Frames::default().find(&SOUGHT, &bytes), None);
        let place = bytes.len();
        bytes.extend(SOUGHT);
        bytes.extend(frame(0, 0, 0));
        // However much has passed before.
        for passed in 0..=place {
            let mut frames = Frames::default();
            frames.pass(&bytes[..passed]);
            assert_eq!(frames.find(&SOUGHT, &bytes[passed..]), Some(place - passed));
        }
    }

    #[test]
    fn headers_are_not_parted_from_their_continuation() {
        let mut frames = Frames::default();
        frames.pass(&[frame(1, 0, 3), frame(9, 0, 3)].concat());
        assert!(!frames.is_between());
        frames.pass(&frame(9, 4, 3));
        assert!(frames.is_between());
        frames.pass(&frame(1, 4, 3));
        assert!(frames.is_between());
    }

    #[test]
    fn frames_pass_in_any_pieces() {
        let bytes = [frame(0, 0, 3), frame(0, 0, 0), frame(0, 0, 200)].concat();
        let ends = [0, 12, 21, bytes.len()];
        for piece in 1..bytes.len() {
            let mut frames = Frames::default();
            let mut place = 0;
            for bytes in bytes.chunks(piece) {
                frames.pass(bytes);
                place += bytes.len();
                assert_eq!(frames.is_between(), ends.contains(&place), "{place}");
            }
        }
    }
}
