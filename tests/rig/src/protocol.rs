//! What the client says to each kind of server, and when an answer is complete.

/// Length of a request and of its answer to the rig's own server.
pub const ECHO_BYTES: usize = 64;
/// Length of the value that redis is asked for.
pub const REDIS_VALUE_BYTES: usize = 1_000;

/// The kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// The rig's own server.
    Echo,
    /// `GET` of a value that the client has set before.
    Redis,
    /// `GET /` over a connection that stays open.
    Http,
}

impl Protocol {
    /// One request.
    pub fn request(self) -> Vec<u8> {
        match self {
            Self::Echo => vec![7; ECHO_BYTES],
            Self::Redis => b"*2\r\n$3\r\nGET\r\n$3\r\nrig\r\n".to_vec(),
            Self::Http => b"GET / HTTP/1.1\r\nHost: rig\r\n\r\n".to_vec(),
        }
    }

    /// What to say once before, and how long its answer is.
    pub fn preparation(self) -> Option<(Vec<u8>, usize)> {
        let value = "v".repeat(REDIS_VALUE_BYTES);
        let set = format!("*3\r\n$3\r\nSET\r\n$3\r\nrig\r\n${REDIS_VALUE_BYTES}\r\n{value}\r\n");
        (self == Self::Redis).then(|| (set.into_bytes(), "+OK\r\n".len()))
    }

    /// Whether the bytes received so far are a whole answer.
    pub fn is_complete(self, received: &[u8]) -> bool {
        match self {
            Self::Echo => received.len() >= ECHO_BYTES,
            Self::Redis => {
                received.len() >= format!("${REDIS_VALUE_BYTES}\r\n\r\n").len() + REDIS_VALUE_BYTES
            }
            Self::Http => {
                let Some(head) = find(received, b"\r\n\r\n") else { return false };
                received.len() >= head + 4 + content_length(&received[..head])
            }
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn content_length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head);
    let value = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    value.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_answer_is_complete_with_its_last_body_byte() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        assert!(Protocol::Http.is_complete(answer));
        assert!(!Protocol::Http.is_complete(&answer[..answer.len() - 1]));
    }
}
