//! Message ids and correlation ids.

use std::cell::RefCell;
use std::sync::LazyLock;
use std::thread;

use jiff::tz::TimeZone;

use crate::base::moment::Moment;
use crate::base::random;

/// Creates a new message id in the contract's form: `msg_`, the local time as `YYYYmmddHHMMSS`,
/// `_`, and 16 lower-case hex digits.
///
/// ```
/// let id = coney::message::new_message_id();
/// assert_eq!(id.len(), "msg_20261123083012_862ad1d69070c888".len());
/// ```
pub fn new_message_id() -> String {
    MessageId::random().to_text()
}

/// A message id made by coney, kept as numbers: its text is written for each attempt at a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MessageId {
    unix_seconds: i64,
    random: u64,
}

impl MessageId {
    pub(crate) fn random() -> Self {
        Self::random_at(Moment::now())
    }

    /// Creates an id of a message that is made now.
    pub(crate) fn random_at(now: Moment) -> Self {
        Self {
            unix_seconds: now.unix_seconds(),
            random: random::random_u128(now) as u64,
        }
    }

    pub(crate) fn to_text(self) -> String {
        let mut id = String::with_capacity(4 + 14 + 1 + 16);
        id.push_str("msg_");
        push_local_time(self.unix_seconds, &mut id);
        id.push('_');
        let random: [u8; 16] = hex(self.random.into());
        id.push_str(std::str::from_utf8(&random).unwrap_or_default());
        id
    }
}

/// Creates a new correlation id in the contract's form: 32 lower-case hex digits, which cannot be
/// predicted from other ids.
///
/// ```
/// assert_eq!(coney::message::new_correlation_id().len(), 32);
/// ```
pub fn new_correlation_id() -> String {
    CorrelationId::random().to_text()
}

/// A correlation id made by coney, kept as a number: the key of the pending table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CorrelationId(u128);

impl CorrelationId {
    pub(crate) fn random() -> Self {
        Self::random_at(Moment::now())
    }

    /// Creates an id of a message that is made now.
    pub(crate) fn random_at(now: Moment) -> Self {
        Self(random::random_u128(now))
    }

    pub(crate) fn to_text(self) -> String {
        String::from_utf8(self.to_hex().to_vec()).unwrap_or_default()
    }

    pub(crate) fn to_hex(self) -> [u8; 32] {
        hex(self.0)
    }

    /// Parses a correlation id; returns `None` for a text that this process cannot have made.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits: &[u8; 32] = text.as_bytes().try_into().ok()?;
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(u128::from_be_bytes(bytes)))
    }
}

/// Returns the value of a lower-case hex digit.
fn digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Returns the last `N` hex digits, an even number.
fn hex<const N: usize>(value: u128) -> [u8; N] {
    const HEX: [u8; 16] = *b"0123456789abcdef";
    let mut digits = [0; N];
    let bytes = value.to_be_bytes();
    for (pair, byte) in digits.rchunks_exact_mut(2).zip(bytes.into_iter().rev()) {
        pair[0] = HEX[usize::from(byte >> 4)];
        pair[1] = HEX[usize::from(byte & 0xf)];
    }
    digits
}

/// Appends a local time. Formatting it costs more than the rest of an id, so each thread caches the
/// last second it formatted.
fn push_local_time(second: i64, out: &mut String) {
    thread_local! {
        static LAST: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
    }
    LAST.with_borrow_mut(|(at, text)| {
        if *at != second {
            *at = second;
            *text = format_local_time(second);
        }
        out.push_str(text);
    });
}

/// The system's time zone. Reading it takes more stack than a caller's thread may have, so a thread
/// of its own does it, once.
static ZONE: LazyLock<TimeZone> = LazyLock::new(|| {
    let thread = thread::Builder::new().name("coney-zone".to_owned());
    let zone = thread.spawn(TimeZone::system).ok();
    zone.and_then(|zone| zone.join().ok())
        .unwrap_or(TimeZone::UTC)
});

fn format_local_time(second: i64) -> String {
    jiff::Timestamp::from_second(second)
        .unwrap_or_default()
        .to_zoned_datetime(ZONE.clone())
        .strftime("%Y%m%d%H%M%S")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_ids_have_the_contracts_form() {
        let id = new_message_id();
        let (time, random) = id
            .strip_prefix("msg_")
            .and_then(|rest| rest.split_once('_'))
            .unwrap();
        assert_eq!(time.len(), 14);
        assert!(time.bytes().all(|b| b.is_ascii_digit()), "{id}");
        assert_eq!(random.len(), 16);
        assert!(
            random
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        );
        let year = format_local_time(Moment::now().unix_seconds());
        assert_eq!(time[..4], year[..4]);
    }

    #[test]
    fn an_id_has_the_same_text_each_time() {
        let id = MessageId::random();
        assert_eq!(id.to_text(), id.to_text());
    }

    #[test]
    fn the_cached_second_is_renewed() {
        let (mut first, mut second) = (String::new(), String::new());
        push_local_time(1_700_000_000, &mut first);
        push_local_time(1_700_000_001, &mut second);
        assert_ne!(first, second);
    }

    #[test]
    fn own_correlation_ids_parse_and_foreign_ones_do_not() {
        let id = CorrelationId::random();
        assert_eq!(CorrelationId::parse(&id.to_text()), Some(id));
        let small = CorrelationId(7);
        assert_eq!(small.to_text(), format!("{:032x}", 7));
        for foreign in ["", "7", &"G".repeat(32), &"A".repeat(32), &"+".repeat(32)] {
            assert_eq!(CorrelationId::parse(foreign), None, "{foreign}");
        }
    }
}
