//! Tests of the order in which a schedule runs its items.

use std::time::{Duration, Instant};

use super::lane::{Limit, Place};
use super::schedule::Schedule;
use super::schedule_tests::Item;

#[test]
fn a_shared_item_takes_all_runners_and_half_of_them_while_others_wait() {
    let mut schedule = Schedule::new(4);
    let other = schedule.add_class(Limit::None);
    let shared = schedule.add_class(Limit::HalfIfOthersWait);
    let batch = Item::new(0, 100);
    schedule.push_single(shared, batch);
    let mut places: Vec<Place> = (0..4)
        .map(|_| schedule.take().expect("it waits").1)
        .collect();
    assert!(!schedule.others_wait());
    for id in 1..=3 {
        schedule.push(other, Item::new(id, 0));
    }
    assert!(schedule.others_wait());
    // Runners of the shared item whose turns are over: the other items get half of them.
    let mut order = Vec::new();
    for _ in 0..4 {
        schedule.finish(places.remove(0));
        let (item, place) = schedule.take().expect("it waits");
        order.push(item.id);
        places.push(place);
    }
    assert_eq!(order, [1, 2, 0, 3]);
}

#[test]
fn an_item_that_is_put_back_keeps_its_place_before_those_of_its_key() {
    let now = Instant::now();
    let mut schedule = Schedule::new(1);
    let class = schedule.add_class(Limit::None);
    for id in [1, 2] {
        schedule.push_keyed(class, "a".to_owned(), Item::new(id, 0));
    }
    schedule.push_keyed(class, "b".to_owned(), Item::new(3, 0));
    let (first, place) = schedule.take().expect("it waits");
    let due = now + Duration::from_secs(1);
    assert!(schedule.put_back(place, first, due).is_ok());
    assert_eq!(schedule.next_due(), Some(due));
    let (other, place) = schedule.take().expect("the other key goes on");
    assert_eq!(other.id, 3);
    schedule.finish(place);
    assert!(schedule.take().is_none());
    schedule.release(due);
    let (again, place) = schedule.take().expect("it is due");
    assert_eq!(again.id, 1);
    schedule.finish(place);
    assert_eq!(schedule.take().map(|(item, _)| item.id), Some(2));
}
