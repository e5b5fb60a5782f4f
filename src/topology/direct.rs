//! RabbitMQ's direct reply-to: names that stand for a client's channel instead of a queue.

/// The pseudo-queue from which a client consumes direct replies. The broker replaces it in the
/// property `reply_to` by a longer name that begins with it.
pub(crate) const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// The wire format of an Erlang process id: a version, a tag, and the name of its node with a
/// length of one or two bytes; then three numbers, in 12 bytes.
const VERSION: u8 = 131;
const PROCESS: u8 = 88;
const LONG_NAMES: [u8; 2] = [100, 118];
const SHORT_NAMES: [u8; 2] = [115, 119];
const NUMBERS: usize = 12;

/// Returns true if the broker made this name: it holds the channel that takes the replies, and a
/// key.
///
/// The broker decodes the name for each reply sent there, and a name that it cannot decode ends the
/// connection of the sender of the reply.
pub(super) fn is_direct(queue: &str) -> bool {
    let token = queue.strip_prefix(DIRECT_REPLY_TO);
    let parts = token
        .and_then(|token| token.strip_prefix('.')?.split_once('.'))
        .and_then(|(process, key)| Some((decode(process)?, decode(key)?)));
    parts.is_some_and(|(process, key)| is_process(&process) && !key.is_empty())
}

fn is_process(bytes: &[u8]) -> bool {
    let (name, rest) = match bytes {
        [VERSION, PROCESS, tag, high, low, rest @ ..] if LONG_NAMES.contains(tag) => {
            (usize::from(u16::from_be_bytes([*high, *low])), rest)
        }
        [VERSION, PROCESS, tag, length, rest @ ..] if SHORT_NAMES.contains(tag) => {
            (usize::from(*length), rest)
        }
        _ => return false,
    };
    let is_text = rest.get(..name).map(str::from_utf8);
    (1..256).contains(&name) && rest.len() == name + NUMBERS && matches!(is_text, Some(Ok(_)))
}

/// Decodes base64, as strictly as the broker does.
fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_made_by_the_broker_are_accepted() {
        let made = "amq.rabbitmq.reply-to.g1h2AA9yZXBseUAxMTU5MzU0NDQAAAdgAAAAp2sJgcA=.KvEFKM7FIgLhFeQuXNQn1w==";
        assert!(is_direct(made));
        for forged in [
            "amq.rabbitmq.reply-to",
            "amq.rabbitmq.reply-to.AA.B",
            "amq.rabbitmq.reply-to.AAAA.BBBB",
            "amq.rabbitmq.reply-to.g1h2AA9yZXBseUAxMTU5MzU0NDQAAAdgAAAAp2sJgcA=",
            "amq.rabbitmq.reply-to.g1h2AA9yZXBseUAxMTU5MzU0NDQAAAdgAAAAp2sJgcA=.",
            "amq.rabbitmq.reply-to.g1h2AP9yZXBseUAxMTU5MzU0NDQAAAdgAAAAp2sJgcA=.KvEF",
            "amq.rabbitmq.reply-to.g1h2AA9yZXBseUAxMTU5MzU0NDQAAAdgAAAAp2sJgcA.KvEF",
        ] {
            assert!(!is_direct(forged), "{forged}");
        }
        for cut in 0..made.len() - 30 {
            assert!(!is_direct(&made[..cut]), "{cut}");
        }
    }

    #[test]
    fn base64_is_decoded() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9vYmFy", b"foobar"),
        ] {
            assert_eq!(decode(text).as_deref(), Some(bytes));
        }
        for wrong in ["Z", "Zg=", "Zg", "Z===", "====", "Zm9!"] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }
}
