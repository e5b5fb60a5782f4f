//! A cached action against a model, which is given the time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::cached::Cached;
use super::epoch::Consuming;
use super::fill::ActionFill;
use super::support_tests::{cached, refused, request, seen, unavailable};
use crate::client::CacheRead;

const TTL: u64 = 100;
const STALE_FOR: u64 = 200;
const STALE_IF_ERROR: u64 = 400;
const ERROR_TTL: u64 = 50;

#[derive(Clone, Debug)]
enum Step {
    /// A request that no caller waits for.
    Begin(u8),
    /// A blocking call, which sends its request if there is no response.
    Read(u8),
    Succeed(usize),
    Unavailable(usize),
    NotFound(usize),
    /// An event with the tag of this payload.
    Event(u8),
    Clear,
    Lost,
    Opened,
    Later(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let payload = || 0..3_u8;
    let fill = || 0..4_usize;
    prop_oneof![
        2 => payload().prop_map(Step::Begin),
        8 => payload().prop_map(Step::Read),
        6 => fill().prop_map(Step::Succeed),
        2 => fill().prop_map(Step::Unavailable),
        1 => fill().prop_map(Step::NotFound),
        2 => payload().prop_map(Step::Event),
        1 => Just(Step::Clear),
        1 => Just(Step::Lost),
        1 => Just(Step::Opened),
        4 => (1..120_u64).prop_map(Step::Later),
    ]
}

/// A request or a stored response of the model, with everything that has happened since it began.
#[derive(Clone, Debug)]
struct Known {
    payload: u8,
    since: u64,
    /// The response; `None` is the error `not_found`.
    text: Option<String>,
    is_invalidated: bool,
    has_missed: bool,
}

#[derive(Default)]
struct Model {
    now: u64,
    is_down: bool,
    stored: HashMap<u8, Known>,
}

impl Model {
    /// Returns the response of a payload, `Err` for a remembered error, and whether it is stale.
    fn find(&self, payload: u8) -> Option<(Result<String, ()>, bool)> {
        let known = self.stored.get(&payload)?;
        let age = self.now - known.since;
        let Some(text) = &known.text else {
            let is_fresh = age <= ERROR_TTL && !self.is_down;
            return (is_fresh && !known.is_invalidated && !known.has_missed)
                .then_some((Err(()), false));
        };
        if known.is_invalidated || (known.has_missed && !self.is_down) {
            return None;
        }
        if age <= TTL && !self.is_down {
            return Some((Ok(text.clone()), false));
        }
        (age <= TTL + STALE_FOR).then(|| (Ok(text.clone()), true))
    }

    fn stand_in(&self, payload: u8) -> Option<String> {
        let known = self.stored.get(&payload)?;
        let age = self.now - known.since;
        let may_stand_in = age <= TTL + STALE_IF_ERROR && !known.is_invalidated;
        known.text.clone().filter(|_| may_stand_in)
    }

    fn store(&mut self, known: Known) {
        let present = self.stored.get(&known.payload);
        let is_later = present.is_none_or(|present| present.since <= known.since);
        if !known.is_invalidated && !known.has_missed && is_later {
            self.stored.insert(known.payload, known);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_cached_action_does_as_its_model(steps in proptest::collection::vec(step(), 1..80)) {
        let millis = Duration::from_millis;
        let settings = Cached::fresh_for(millis(TTL))
            .stale_for(millis(STALE_FOR))
            .stale_if_error(millis(STALE_IF_ERROR))
            .tags(|id: &u8| [*id])
            .remember_errors("not_found", millis(ERROR_TTL));
        let (cache, action) = cached(settings);
        let consuming = Consuming::not_yet(&action.0.epoch);
        consuming.begin();
        // Refreshes wait until the end: a reader could share the error of one.
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let refreshes = action.0.core.refresher.jobs("test").unwrap();
        let blocked = refreshes.add(Box::new(move || {
            let _ = ended.recv();
        }));
        prop_assert!(blocked.is_ok());
        // Later than the clock, which some steps read too.
        let start = Instant::now() + Duration::from_secs(3_600);
        let mut model = Model::default();
        let mut fills: Vec<(ActionFill, Known)> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            let now = start + millis(model.now);
            match step {
                Step::Later(time) => model.now += time,
                Step::Begin(payload) => {
                    let request = request(&payload.to_string());
                    let fill = request.with(|request| action.begin_at(request, now));
                    fills.push((fill, Known {
                        payload,
                        since: model.now,
                        text: None,
                        is_invalidated: false,
                        has_missed: false,
                    }));
                }
                Step::Read(payload) => {
                    let request = request(&payload.to_string());
                    let found = match request.with(|request| action.read_at(request, now)) {
                        CacheRead::Answer(answer) => {
                            let (text, is_stale) = seen(&answer);
                            Some((Ok(text), is_stale))
                        }
                        CacheRead::Error(_) => Some((Err(()), false)),
                        CacheRead::Lead(fill) => {
                            drop(fill);
                            None
                        }
                    };
                    prop_assert_eq!(found, model.find(payload));
                }
                Step::Succeed(index) if index < fills.len() => {
                    let (fill, mut known) = fills.remove(index);
                    let text = number.to_string();
                    prop_assert_eq!(fill.settle(Ok(&text), now), None);
                    known.text = Some(text);
                    model.store(known);
                }
                Step::Unavailable(index) if index < fills.len() => {
                    let (fill, known) = fills.remove(index);
                    let answer = fill.settle(Err(&unavailable()), now);
                    let text = answer.map(|answer| answer.text.to_string());
                    prop_assert_eq!(text, model.stand_in(known.payload));
                }
                Step::NotFound(index) if index < fills.len() => {
                    let (fill, known) = fills.remove(index);
                    prop_assert_eq!(fill.settle(Err(&refused("not_found")), now), None);
                    model.store(known);
                }
                Step::Event(payload) => {
                    cache.invalidate("user-service", "get_user", [payload]);
                    let known = fills.iter_mut().map(|(_, known)| known);
                    let known = known.chain(model.stored.values_mut());
                    for known in known.filter(|known| known.payload == payload) {
                        known.is_invalidated = true;
                    }
                }
                Step::Clear => {
                    cache.clear();
                    model.stored.clear();
                    fills.iter_mut().for_each(|(_, known)| known.is_invalidated = true);
                }
                Step::Lost | Step::Opened => {
                    let is_down = matches!(step, Step::Lost);
                    match is_down {
                        true => consuming.end(),
                        false => consuming.begin(),
                    }
                    if is_down != model.is_down {
                        model.is_down = is_down;
                        let known = fills.iter_mut().map(|(_, known)| known);
                        let known = known.chain(model.stored.values_mut());
                        known.for_each(|known| known.has_missed = true);
                    }
                }
                Step::Succeed(_) | Step::Unavailable(_) | Step::NotFound(_) => {}
            }
        }
        drop(end);
    }
}
