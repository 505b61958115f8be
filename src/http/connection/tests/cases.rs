//! Every HTTP case of `tests/http_cases.json`, whole, cut at every byte, and byte by byte. Each part is a read of its own.

#[path = "../../../../tests/common/cases.rs"]
mod file;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Ready;
use std::task::{Context, Waker};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc::unbounded_channel;

use self::file::{Case, PROBE, SHORT_BYTES, cases};
use super::session::{Client, peers};
use crate::error::Result as EngineResult;
use crate::http::connection::serve;
use crate::http::part::Part;
use crate::http::{Control, Controlled, Handler, Probe, Reply, Response};
use crate::key::{Key, SeqNo, UnixMillis};
use crate::op::{Op, Outcome, ToBytes};

/// A store in memory, which knows every outcome at once.
struct Map {
    values: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
    has_stopped: Cell<bool>,
}

impl Handler for Map {
    type Pending = Ready<EngineResult<Outcome<Bytes>>>;

    fn now(&self) -> UnixMillis {
        UnixMillis(1)
    }

    fn clock(&self) -> Instant {
        Instant::now()
    }

    fn prefetch(&self, _: impl Iterator<Item = Key<()>>, _: bool) {}

    fn begin<B: ToBytes>(
        &self,
        op: Op<B>,
        _: UnixMillis,
        _: Option<Probe>,
        _: impl FnOnce(Outcome<&[u8]>) -> bool,
    ) -> Reply<Self::Pending> {
        let mut values = self.values.borrow_mut();
        let key = op.key().bytes().to_vec();
        let written = Outcome::Written { seqno: SeqNo(1) };
        Reply::Known(Ok(match op {
            Op::Set { value, .. } => {
                values.insert(key, value.as_ref().to_vec());
                written
            }
            Op::Get { .. } => values.get(&key).map_or(Outcome::Missing, |value| Outcome::Value {
                value: Bytes::copy_from_slice(value),
                seqno: SeqNo(1),
                expires: None,
            }),
            Op::Delete { .. } => values.remove(&key).map_or(Outcome::Missing, |_| written),
        }))
    }

    fn fetch(&self, _: Part) -> Self::Pending {
        unreachable!("no case asks for a part of a file")
    }

    fn control(&self, control: Control) -> Controlled {
        Controlled::Now(match control {
            Control::Openapi => Response::OPENAPI,
            Control::Metrics => Response::metrics(String::new()),
            Control::Livez | Control::Readyz | Control::Stats | Control::Compact => Response::OK,
            Control::Backup => Response::unavailable("this store is not on disk"),
            Control::Options(methods) => Response::allow(methods.allow()),
            Control::Shutdown => {
                self.has_stopped.set(true);
                Response::lines(unbounded_channel().1)
            }
        })
    }
}

/// Sends a case in these parts.
fn run(case: &Case, bytes: &[u8], parts: &[&[u8]]) -> Result<(), String> {
    let values = BTreeMap::from([(b"a".to_vec(), b"b".to_vec()), (b"mb".to_vec(), vec![b'z'; 1 << 20])]);
    let map = Map { values: RefCell::new(values), has_stopped: Cell::new(false) };
    let peers = peers(&[], 1 << 20, 8 << 20);
    let client = Client::default();
    let mut serving = Box::pin(serve(client.clone(), &map, &peers));
    let mut go_on = || serving.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
    let mut is_over = false;
    for part in parts {
        client.0.sent.borrow_mut().push_back(part.to_vec());
        is_over = is_over || go_on();
    }
    if case.ends() {
        client.0.has_ended.set(true);
        is_over = is_over || go_on();
    }
    let probed = case.may_be_probed() && !client.0.is_closed.get();
    if probed {
        client.0.sent.borrow_mut().push_back(PROBE.into());
        is_over = is_over || go_on();
    }
    if case.waits() && (is_over || client.0.is_closed.get()) {
        return Err("the connection is closed".into());
    }
    if !case.waits() && !is_over && !client.0.is_closed.get() {
        return Err("the connection stays open".into());
    }
    let received = client.0.received.take();
    case.verdict(&received, bytes, probed)?;
    let values = map.values.borrow();
    if let Some((key, value)) = case.stored("zzzz") {
        let key: Vec<u8> = key.chars().map(|byte| u32::from(byte) as u8).collect();
        if values.get(&key) != value.as_ref() {
            return Err(format!("stored: {:?}", values.get(&key)));
        }
    }
    if values.contains_key(b"smuggled".as_slice()) || (case.asks_for_stop() && map.has_stopped.get()) {
        return Err("something was done that must not be done".into());
    }
    Ok(())
}

#[test]
fn h1_every_http_case_is_read_in_the_same_way_wherever_it_is_cut() {
    let begin = Instant::now();
    let (mut runs, mut wrong) = (0, Vec::new());
    for case in cases() {
        let bytes = case.bytes("zzzz");
        let mut attempt = |how: String, parts: &[&[u8]]| {
            runs += 1;
            if let Err(why) = run(&case, &bytes, parts) {
                wrong.push(format!("{}, {how}: {why}", case.name()));
            }
        };
        attempt("whole".into(), &[&bytes]);
        if bytes.len() <= SHORT_BYTES {
            for at in 1..bytes.len() {
                attempt(format!("cut at {at}"), &[&bytes[..at], &bytes[at..]]);
            }
            attempt("byte by byte".into(), &bytes.chunks(1).collect::<Vec<_>>());
        }
    }
    let shown = wrong.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {runs} runs:\n{shown}", wrong.len());
    println!("{runs} runs in {:?}", begin.elapsed());
}
