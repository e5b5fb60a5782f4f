use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use amiquip::Confirm;

use crate::transport::{ConfirmOutcome, ConfirmSender, Publication, Returned};

/// What was published on a confirming channel and not confirmed yet.
///
/// The broker numbers what it is sent, channel by channel, from 1; so must we. It
/// confirms in any order, one by one or everything up to a number. A message that
/// fits no queue is returned first, and then confirmed all the same, so whoever
/// calls [`confirmed`](Unconfirmed::confirmed) has passed on the returns before.
pub(super) struct Unconfirmed {
    /// The number of the next message.
    next: u64,
    /// By their numbers; only those that somebody waits for.
    waiting: BTreeMap<u64, UnconfirmedMessage>,
    /// The reasons why messages were returned that are not confirmed yet.
    returned: HashMap<ReturnKey, VecDeque<String>>,
}

/// What a returned message is recognised by. Of several with the same name it is
/// the first: where they were to go, none of them could.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ReturnKey {
    exchange: Cow<'static, str>,
    routing_key: String,
    message_id: Option<String>,
}

struct UnconfirmedMessage {
    confirm: ConfirmSender,
    name: ReturnKey,
    /// The message itself, if it may be sent again after a loss.
    resend: Option<Publication>,
}

impl Unconfirmed {
    /// For a channel that has published `before` messages in confirm mode.
    pub(super) fn after(before: u64) -> Self {
        Self {
            next: before + 1,
            waiting: BTreeMap::new(),
            returned: HashMap::new(),
        }
    }

    /// How many messages the channel has published.
    pub(super) fn published(&self) -> u64 {
        self.next - 1
    }

    /// Notes the message that is published next.
    pub(super) fn publishing(&mut self, publication: &Publication, confirm: Option<ConfirmSender>) {
        let number = self.next;
        self.next += 1;
        let Some(confirm) = confirm else { return };
        let waiting = UnconfirmedMessage {
            confirm,
            name: ReturnKey {
                exchange: publication.exchange.clone(),
                routing_key: publication.routing_key.clone(),
                message_id: publication.properties.message_id.clone(),
            },
            resend: publication.idempotent.then(|| publication.clone()),
        };
        self.waiting.insert(number, waiting);
    }

    /// The broker has returned a message.
    pub(super) fn returned(&mut self, returned: Returned) {
        let name = ReturnKey {
            exchange: returned.exchange,
            routing_key: returned.routing_key,
            message_id: returned.message_id,
        };
        self.returned
            .entry(name)
            .or_default()
            .push_back(returned.reason);
    }

    /// Why this message was returned, if it was.
    fn take_returned(&mut self, name: &ReturnKey) -> Option<String> {
        if self.returned.is_empty() {
            return None;
        }
        let reasons = self.returned.get_mut(name)?;
        let reason = reasons.pop_front();
        if reasons.is_empty() {
            self.returned.remove(name);
        }
        reason
    }

    /// The broker has spoken.
    pub(super) fn confirmed(&mut self, confirm: Confirm) {
        let (payload, taken) = match confirm {
            Confirm::Ack(payload) => (payload, true),
            Confirm::Nack(payload) => (payload, false),
        };
        let number = payload.delivery_tag;
        let confirmed = if payload.multiple {
            let later = self.waiting.split_off(&number.saturating_add(1));
            std::mem::replace(&mut self.waiting, later)
        } else {
            // None for one of a link that had the channel before.
            let one = self.waiting.remove(&number);
            BTreeMap::from_iter(one.map(|waiting| (number, waiting)))
        };
        for waiting in confirmed.into_values() {
            let returned = self.take_returned(&waiting.name);
            waiting.confirm.settle(match returned {
                Some(reason) => ConfirmOutcome::Returned(reason),
                None if taken => ConfirmOutcome::Confirmed,
                None => ConfirmOutcome::Refused("a queue is full, or has failed".to_owned()),
            });
        }
    }

    /// The broker has closed the channel because of one message: that is refused, and what
    /// became of the others is unknown. It is the oldest one for the exchange that the
    /// broker's reason names.
    pub(super) fn refused(&mut self, reason: &Arc<str>) {
        let names = |name: &ReturnKey| reason.contains(&format!("'{}'", name.exchange));
        let mut waiting = std::mem::take(&mut self.waiting).into_iter();
        let mut before = Vec::new();
        let at_fault = waiting.find_map(|(_, waiting)| {
            if names(&waiting.name) {
                return Some(waiting);
            }
            before.push(waiting);
            None
        });
        if let Some(refused) = at_fault {
            refused
                .confirm
                .settle(ConfirmOutcome::Refused(reason.to_string()));
        }
        let others = before
            .into_iter()
            .chain(waiting.map(|(_, waiting)| waiting));
        for other in others {
            other
                .confirm
                .settle(ConfirmOutcome::Lost(Arc::clone(reason)));
        }
    }

    /// The connection is lost: returns what is to be sent again, with its
    /// receipts, and tells the others.
    pub(super) fn lost(
        &mut self,
        cause: &Arc<str>,
        may_resend: bool,
    ) -> Vec<(Publication, ConfirmSender)> {
        let mut resend = Vec::new();
        for waiting in std::mem::take(&mut self.waiting).into_values() {
            match waiting.resend {
                Some(publication) if may_resend => {
                    if let Some(send_state) = &publication.send_state {
                        send_state.queue_again();
                    }
                    resend.push((publication, waiting.confirm));
                }
                _ => waiting
                    .confirm
                    .settle(ConfirmOutcome::Lost(Arc::clone(cause))),
            }
        }
        resend
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::confirmation::{self, ConfirmReceiver, ConfirmWindow};
    use amiquip::ConfirmPayload;
    use std::time::Instant;

    fn publish(unconfirmed: &mut Unconfirmed, id: &str) -> ConfirmReceiver {
        let window = Arc::new(ConfirmWindow::new(1));
        let permit = window.enter(Instant::now()).unwrap();
        let (confirm, receiver) = confirmation::pair(permit);
        let mut publication = Publication::new("", "q", Vec::new());
        publication.properties.message_id = (!id.is_empty()).then(|| id.to_owned());
        publication.idempotent = id == "again";
        unconfirmed.publishing(&publication, Some(confirm));
        receiver
    }

    fn returned(id: Option<&str>) -> Returned {
        Returned {
            exchange: "".into(),
            routing_key: "q".to_owned(),
            message_id: id.map(str::to_owned),
            correlation_id: None,
            reason: "NO_ROUTE".to_owned(),
        }
    }

    fn payload(delivery_tag: u64, multiple: bool) -> ConfirmPayload {
        ConfirmPayload {
            delivery_tag,
            multiple,
        }
    }

    fn outcome(receiver: &ConfirmReceiver) -> Option<ConfirmOutcome> {
        receiver.wait(Instant::now())
    }

    #[test]
    fn in_any_order_one_by_one_or_many_at_once() {
        let mut unconfirmed = Unconfirmed::after(5);
        let all = ["a", "b", "c", "d"].map(|id| publish(&mut unconfirmed, id));
        assert_eq!(unconfirmed.published(), 9);
        unconfirmed.confirmed(Confirm::Ack(payload(2, true))); // of another link
        assert_eq!(outcome(&all[0]), None);
        unconfirmed.confirmed(Confirm::Nack(payload(8, false)));
        assert!(matches!(outcome(&all[2]), Some(ConfirmOutcome::Refused(_))));
        unconfirmed.confirmed(Confirm::Ack(payload(7, true)));
        assert_eq!(outcome(&all[0]), Some(ConfirmOutcome::Confirmed));
        assert_eq!(outcome(&all[1]), Some(ConfirmOutcome::Confirmed));
        assert_eq!(outcome(&all[3]), None);
        unconfirmed.confirmed(Confirm::Ack(payload(99, true))); // nonsense, and harmless
        assert_eq!(outcome(&all[3]), Some(ConfirmOutcome::Confirmed));
        let next = publish(&mut unconfirmed, "e");
        unconfirmed.confirmed(Confirm::Ack(payload(10, false)));
        assert_eq!(outcome(&next), Some(ConfirmOutcome::Confirmed));
    }

    #[test]
    fn one_message_is_at_fault_for_a_closed_channel() {
        let mut unconfirmed = Unconfirmed::after(0);
        let all = ["a", "b"].map(|id| publish(&mut unconfirmed, id));
        unconfirmed.refused(&"access to exchange '' refused".into());
        assert!(matches!(outcome(&all[0]), Some(ConfirmOutcome::Refused(_))));
        assert!(matches!(outcome(&all[1]), Some(ConfirmOutcome::Lost(_))));
        let all = ["a", "b"].map(|id| publish(&mut unconfirmed, id));
        unconfirmed.refused(&"access to exchange 'x' refused".into());
        assert!(matches!(outcome(&all[0]), Some(ConfirmOutcome::Lost(_))));
        assert!(matches!(outcome(&all[1]), Some(ConfirmOutcome::Lost(_))));
    }

    #[test]
    fn a_returned_message_is_not_confirmed() {
        let mut unconfirmed = Unconfirmed::after(0);
        let (a, b) = (
            publish(&mut unconfirmed, "a"),
            publish(&mut unconfirmed, "b"),
        );
        unconfirmed.returned(returned(Some("b")));
        unconfirmed.confirmed(Confirm::Ack(payload(2, true)));
        assert_eq!(outcome(&a), Some(ConfirmOutcome::Confirmed));
        assert_eq!(
            outcome(&b),
            Some(ConfirmOutcome::Returned("NO_ROUTE".to_owned()))
        );
    }

    #[test]
    fn of_several_with_one_name_as_many_are_returned_as_were() {
        let mut unconfirmed = Unconfirmed::after(0);
        let all = ["", "", "a"].map(|id| publish(&mut unconfirmed, id));
        unconfirmed.returned(returned(None));
        unconfirmed.confirmed(Confirm::Ack(payload(3, true)));
        assert_eq!(
            outcome(&all[0]),
            Some(ConfirmOutcome::Returned("NO_ROUTE".to_owned()))
        );
        assert_eq!(outcome(&all[1]), Some(ConfirmOutcome::Confirmed));
        assert_eq!(outcome(&all[2]), Some(ConfirmOutcome::Confirmed));
    }

    #[test]
    fn a_loss_tells_all_but_what_is_sent_again() {
        let mut unconfirmed = Unconfirmed::after(0);
        let (a, b) = (
            publish(&mut unconfirmed, "a"),
            publish(&mut unconfirmed, "again"),
        );
        let resend = unconfirmed.lost(&"gone".into(), true);
        assert_eq!(outcome(&a), Some(ConfirmOutcome::Lost("gone".into())));
        assert_eq!(outcome(&b), None);
        assert_eq!(resend.len(), 1);
        drop(resend);
        assert_eq!(outcome(&b), Some(ConfirmOutcome::Dropped));
    }
}
