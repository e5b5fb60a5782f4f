//! Catching of panics in code that is not coney's: handlers, callbacks, checks, stores, loggers.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};

/// Runs `run`; returns the panic's text if it panics.
///
/// A panic's payload may be any value of the user's, and its drop may panic in turn, so the payload
/// is forgotten.
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

    struct PanicsOnDrop;

    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }

    #[test]
    fn returns_the_text_of_a_panic() {
        assert_eq!(catch(|| 7), Ok(7));
        assert_eq!(
            catch(|| panic!("with {}", 7)),
            Err::<(), _>("with 7".to_owned())
        );
        let odd = catch(|| panic::panic_any(PanicsOnDrop));
        assert_eq!(odd, Err::<(), _>("no text".to_owned()));
    }
}
