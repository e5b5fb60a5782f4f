//! Panics in code that is not coney's: handlers, callbacks, checks, stores, loggers.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};

/// Runs it; if it panics, the text that the panic came with.
///
/// What it came with may be any value of the user's, whose drop may panic in turn: it is
/// forgotten.
pub(crate) fn catch<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(run)).map_err(|payload| {
        let text = text_of(&*payload).to_owned();
        std::mem::forget(payload);
        text
    })
}

fn text_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Grenade;

    impl Drop for Grenade {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }

    #[test]
    fn a_panic_is_its_text() {
        assert_eq!(catch(|| 7), Ok(7));
        assert_eq!(
            catch(|| panic!("with {}", 7)),
            Err::<(), _>("with 7".to_owned())
        );
        let odd = catch(|| panic::panic_any(Grenade));
        assert_eq!(odd, Err::<(), _>("no text".to_owned()));
    }
}
