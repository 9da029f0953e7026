//! Judges what a server answers, byte by byte, without any input or output.

/// The answer that a request must get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// `ok <pid>`
    Ok,
    /// `slow <pid>`
    Slow,
    /// `got <pid> <bytes>`
    Got(usize),
    /// The line `PONG <pid>`, without HTTP.
    Pong,
    /// Any HTTP answer with status 200: the server knows nothing of this contract.
    Any,
}

/// What the bytes so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Some of the answer is missing.
    Partial,
    /// The answer is there and right. `close` is what the server wants of the connection.
    Complete { pid: Option<u32>, close: bool },
    /// The answer is there, or can never be, and is not what was expected.
    Wrong(String),
}

/// The bytes of one answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    bytes: Vec<u8>,
    head: Option<Head>,
}

#[derive(Debug)]
struct Head {
    len: usize,
    status: u16,
    /// None: the body ends where the connection does.
    body: Option<usize>,
    close: bool,
}

/// No answer of the contract comes near this; one that does is not an answer.
const MAX_HEAD: usize = 16 * 1024;

impl Answer {
    /// Whether nothing of the answer has come yet.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Forgets the answer; the next one starts.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.head = None;
    }

    /// Adds bytes from the connection.
    pub(super) fn feed(&mut self, bytes: &[u8], expect: &Expect) -> Verdict {
        self.bytes.extend_from_slice(bytes);
        if *expect == Expect::Pong {
            return self.judge_line();
        }
        loop {
            if self.head.is_none() {
                match parse_head(&self.bytes) {
                    Ok(Some(head)) => self.head = Some(head),
                    Ok(None) if self.bytes.len() > MAX_HEAD => {
                        return Verdict::Wrong("a head without end".into());
                    }
                    Ok(None) => return Verdict::Partial,
                    Err(reason) => return Verdict::Wrong(reason),
                }
            }
            match &self.head {
                // `100 Continue` and its like come before the answer proper.
                Some(head) if head.status < 200 => {
                    self.bytes.drain(..head.len);
                    self.head = None;
                }
                _ => return self.judge_body(expect),
            }
        }
    }

    /// The server has closed the connection in order.
    pub(super) fn end(&self, expect: &Expect) -> Verdict {
        match &self.head {
            Some(head @ Head { body: None, .. }) => {
                judge(head, &self.bytes[head.len..], expect, true)
            }
            _ => Verdict::Partial,
        }
    }

    fn judge_body(&self, expect: &Expect) -> Verdict {
        let Some(head) = &self.head else {
            return Verdict::Partial;
        };
        let body = &self.bytes[head.len..];
        match head.body {
            Some(len) if body.len() == len => judge(head, body, expect, head.close),
            Some(len) if body.len() > len => Verdict::Wrong(format!(
                "{} bytes after a Content-Length of {len}: {}",
                body.len() - len,
                shown(&body[len..])
            )),
            _ => Verdict::Partial,
        }
    }

    fn judge_line(&self) -> Verdict {
        match self.bytes.iter().position(|&byte| byte == b'\n') {
            Some(end) if end + 1 == self.bytes.len() => match pid_after(&self.bytes, "PONG ") {
                Some(pid) => Verdict::Complete { pid: Some(pid), close: false },
                None => Verdict::Wrong(format!("not a PONG: {}", shown(&self.bytes))),
            },
            Some(_) => Verdict::Wrong(format!("more than a line: {}", shown(&self.bytes))),
            None if self.bytes.len() > 64 => {
                Verdict::Wrong(format!("not a PONG: {}", shown(&self.bytes)))
            }
            None => Verdict::Partial,
        }
    }
}

fn parse_head(bytes: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let len = match response.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("not HTTP ({error}): {}", shown(bytes))),
    };
    let status = response.code.unwrap_or(0);
    let mut body = None;
    let mut close = response.version == Some(0);
    for header in response.headers.iter() {
        let value = header.value.trim_ascii();
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            body = Some(length.ok_or_else(|| format!("Content-Length: {}", shown(value)))?);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("an answer in chunks, which this client does not read".into());
        } else if header.name.eq_ignore_ascii_case("connection") {
            close = value.eq_ignore_ascii_case(b"close")
                || (close && !value.eq_ignore_ascii_case(b"keep-alive"));
        }
    }
    Ok(Some(Head { len, status, body, close }))
}

fn judge(head: &Head, body: &[u8], expect: &Expect, close: bool) -> Verdict {
    if head.status != 200 {
        return Verdict::Wrong(format!("status {}", head.status));
    }
    let pid = match expect {
        Expect::Any => return Verdict::Complete { pid: pid_after(body, "ok "), close },
        Expect::Ok => pid_after(body, "ok "),
        Expect::Slow => pid_after(body, "slow "),
        Expect::Pong => pid_after(body, "PONG "),
        Expect::Got(bytes) => body
            .strip_suffix(format!(" {bytes}\n").as_bytes())
            .and_then(|start| pid_after(&[start, b"\n"].concat(), "got ")),
    };
    match pid {
        Some(pid) => Verdict::Complete { pid: Some(pid), close },
        None => Verdict::Wrong(format!("body {} where {expect:?} was due", shown(body))),
    }
}

/// The number in `<prefix><number>\n`.
fn pid_after(body: &[u8], prefix: &str) -> Option<u32> {
    let digits = body.strip_prefix(prefix.as_bytes())?.strip_suffix(b"\n")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn shown(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes[..bytes.len().min(80)].escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(bytes: &[u8], expect: &Expect) -> Verdict {
        Answer::default().feed(bytes, expect)
    }

    fn http(body: &str) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[test]
    fn each_answer_of_the_contract_is_right() {
        for (body, expect) in
            [("ok 7\n", Expect::Ok), ("slow 7\n", Expect::Slow), ("got 7 16\n", Expect::Got(16))]
        {
            let complete = Verdict::Complete { pid: Some(7), close: false };
            assert_eq!(answer(&http(body), &expect), complete, "{body}");
        }
        assert_eq!(
            answer(b"PONG 7\n", &Expect::Pong),
            Verdict::Complete { pid: Some(7), close: false }
        );
        assert_eq!(
            answer(&http("hello"), &Expect::Any),
            Verdict::Complete { pid: None, close: false }
        );
    }

    #[test]
    fn any_split_gives_the_same_verdict() {
        let whole = http("ok 7\n");
        for at in 1..whole.len() {
            let mut answer = Answer::default();
            assert_eq!(answer.feed(&whole[..at], &Expect::Ok), Verdict::Partial, "at {at}");
            let verdict = answer.feed(&whole[at..], &Expect::Ok);
            assert_eq!(verdict, Verdict::Complete { pid: Some(7), close: false }, "at {at}");
        }
    }

    #[test]
    fn close_is_heard() {
        for (head, expected) in [
            ("HTTP/1.1 200 OK\r\nConnection: close", true),
            ("HTTP/1.1 200 OK\r\nConnection: Close", true),
            ("HTTP/1.1 200 OK\r\nConnection: keep-alive", false),
            ("HTTP/1.0 200 OK\r\nX: y", true),
            ("HTTP/1.0 200 OK\r\nConnection: keep-alive", false),
        ] {
            let bytes = format!("{head}\r\nContent-Length: 5\r\n\r\nok 7\n");
            let verdict = answer(bytes.as_bytes(), &Expect::Ok);
            assert_eq!(verdict, Verdict::Complete { pid: Some(7), close: expected }, "{head}");
        }
    }

    #[test]
    fn wrong_answers_are_wrong() {
        let cases: [(&[u8], Expect); 8] = [
            (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", Expect::Ok),
            (&http("ok x\n"), Expect::Ok),
            (&http("got 7 15\n"), Expect::Got(16)),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok 7\n", Expect::Ok),
            (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", Expect::Ok),
            (b"SSH-2.0\r\n\r\n", Expect::Ok),
            (b"PING 7\n", Expect::Pong),
            (b"PONG 7\nPONG 7\n", Expect::Pong),
        ];
        for (bytes, expect) in cases {
            let verdict = answer(bytes, &expect);
            assert!(matches!(verdict, Verdict::Wrong(_)), "{}: {verdict:?}", shown(bytes));
        }
    }

    #[test]
    fn an_end_completes_only_an_answer_without_length() {
        let mut answer = Answer::default();
        answer.feed(b"HTTP/1.1 200 OK\r\n\r\nok 7\n", &Expect::Ok);
        assert_eq!(answer.end(&Expect::Ok), Verdict::Complete { pid: Some(7), close: true });

        let mut answer = Answer::default();
        answer.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok 7\n", &Expect::Ok);
        assert_eq!(answer.end(&Expect::Ok), Verdict::Partial);
    }

    #[test]
    fn an_interim_answer_is_passed_over() {
        let bytes = [b"HTTP/1.1 100 Continue\r\n\r\n".as_slice(), &http("ok 7\n")].concat();
        let complete = Verdict::Complete { pid: Some(7), close: false };
        assert_eq!(answer(&bytes, &Expect::Ok), complete);
    }
}
