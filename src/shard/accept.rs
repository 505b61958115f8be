//! The connections of a thread: accepts them, spreads them over the threads, and waits for their end.
//!
//! The kernel spreads connections over the listening sockets of all threads by a hash, which is uneven when there are
//! few connections. So a thread hands a new connection to the thread that has the fewest.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};

use super::addresses::Addresses;
use super::handler::{Dispatcher, Status};
use super::listener::Listener;
use super::live::Live;
use super::phase::Phase;
use super::router::ThreadId;
use super::socket::{Handed, Socket};
use crate::http::connection::{refuse, serve};
use crate::http::peers::Peers;
use crate::tls::Settings;

/// How long accepting pauses after an error. If no descriptors are left, for example, trying again at once only costs
/// processor time.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Such errors are over when there was none for so long: at the limit on descriptors, some connections are accepted.
const ACCEPT_QUIET_TIME: Duration = Duration::from_secs(5);
/// Connections beyond the limit that are being told so at a time.
const REFUSED_MAX: usize = 64;

/// Connections of every thread, and the way to hand a connection over.
pub struct Balance {
    /// Connections, by thread.
    pub connections: Vec<AtomicUsize>,
    /// Where to hand a connection to, by thread.
    pub hand: Vec<mpsc::UnboundedSender<Handed>>,
    /// Connections by address.
    pub addresses: Addresses,
}

impl Balance {
    fn total(&self) -> usize {
        self.connections.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The thread that should serve one more connection that arrived at `here`.
    fn choose(&self, here: ThreadId) -> ThreadId {
        let count = |thread: usize| self.connections[thread].load(Ordering::Relaxed);
        let least = (0..self.connections.len()).min_by_key(|&thread| count(thread)).unwrap_or(here.0);
        if count(least) < count(here.0) { ThreadId(least) } else { here }
    }
}

/// The connections of one thread.
pub(super) struct Connections<T> {
    pub(super) id: ThreadId,
    pub(super) balance: Arc<Balance>,
    /// Most connections of all threads together.
    pub(super) connections_max: Cell<usize>,
    pub(super) peers: Peers<Socket>,
    pub(super) dispatcher: Dispatcher<T>,
    /// Connections beyond the limit that are being told so.
    pub(super) refused: Cell<usize>,
    /// Signalled when a connection has ended.
    pub(super) ended: Notify,
    /// What encrypted connections that are accepted now use.
    pub(super) tls: RefCell<Option<Settings>>,
    /// When a connection could last not be accepted, until that is over.
    pub(super) failed_at: Cell<Option<Instant>>,
}

impl<T: Status + 'static> Connections<T> {
    /// Changes what counts for connections that are accepted from now on.
    pub(super) fn change(&self, live: &Live) {
        self.connections_max.set(live.connections_max);
        self.balance.addresses.set_most(live.connections_per_address_max);
        self.tls.replace(live.tls.clone());
    }

    /// Connections of this thread, including those on their way here.
    pub(super) fn count(&self) -> usize {
        self.balance.connections[self.id.0].load(Ordering::Relaxed)
    }

    /// Accepts connections until the listener is stopped.
    pub(super) async fn accept(self: Rc<Self>, listener: Rc<Listener>, phase: watch::Receiver<Phase>) {
        while *phase.borrow() < Phase::Draining {
            match listener.accept(|| self.tls.borrow().clone()).await {
                Ok(socket) => {
                    self.accepts_again();
                    self.clone().place(socket);
                }
                Err(_) if Phase::Draining <= *phase.borrow() => return,
                // The process ends at once: all operations of the ring are cancelled.
                Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => return,
                Err(error) => {
                    if self.failed_at.replace(Some(Instant::now())).is_none() {
                        tracing::warn!(%error, "cannot accept some connections; it is tried again ten times a second");
                    }
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    /// Takes note that a connection was accepted. The log says so when the last failure is some time ago.
    fn accepts_again(&self) {
        if self.failed_at.get().is_some_and(|failed| ACCEPT_QUIET_TIME <= failed.elapsed()) {
            self.failed_at.set(None);
            tracing::info!("all connections are accepted again");
        }
    }

    /// Serves a new connection here, or hands it to the thread with the fewest connections.
    fn place(self: Rc<Self>, mut socket: Socket) {
        if socket.count(&self.balance.addresses).is_err() {
            return self.refuse(socket, "too many connections from this address");
        }
        if self.connections_max.get() <= self.balance.total() && !self.peers.give_way() {
            return self.refuse(socket, "too many connections now");
        }
        let to = self.balance.choose(self.id);
        self.balance.connections[to.0].fetch_add(1, Ordering::Relaxed);
        if to != self.id {
            socket = match Handed::from_socket(socket).map(|handed| self.balance.hand[to.0].send(handed)) {
                Ok(Ok(())) => return,
                Ok(Err(mpsc::error::SendError(back))) => back.into_socket(), // the thread has ended
                Err(back) => back,
            };
            self.balance.connections[to.0].fetch_sub(1, Ordering::Relaxed);
            self.balance.connections[self.id.0].fetch_add(1, Ordering::Relaxed);
        }
        self.serve(socket);
    }

    /// Answers a connection that is not served. Beyond a bound, it is closed without an answer.
    fn refuse(self: Rc<Self>, socket: Socket, why: &'static str) {
        self.peers.count_end(why);
        if self.refused.get() < REFUSED_MAX {
            self.refused.set(self.refused.get() + 1);
            tokio_uring::spawn(async move {
                refuse(socket, &self.peers, why).await;
                self.refused.set(self.refused.get() - 1);
                self.ended.notify_one();
            });
        }
    }

    /// Serves the connections that other threads hand over. Never returns.
    pub(super) async fn take_handed(self: Rc<Self>, mut handed: mpsc::UnboundedReceiver<Handed>) {
        while let Some(handed) = handed.recv().await {
            self.clone().serve(handed.into_socket());
        }
    }

    fn serve(self: Rc<Self>, socket: Socket) {
        tokio_uring::spawn(async move {
            serve(socket, &self.dispatcher, &self.peers).await;
            self.balance.connections[self.id.0].fetch_sub(1, Ordering::Relaxed);
            self.ended.notify_one();
        });
    }

    /// Waits until only connections that watch the stop are left. Cuts off those that wait for their clients when the
    /// phase becomes `Aborting`.
    pub(super) async fn drained(&self, phase: &mut watch::Receiver<Phase>) {
        let mut aborted = false;
        while self.peers.watchers() < self.count() {
            if !aborted && *phase.borrow() == Phase::Aborting {
                aborted = true;
                self.peers.abort();
            }
            tokio::select! {
                () = self.ended.notified() => {}
                () = self.peers.watcher_came() => {}
                _ = phase.changed() => {}
            }
        }
    }

    /// Waits until no connection and no task is left.
    pub(super) async fn quiet(&self) {
        while 0 < self.count() + self.refused.get() + self.dispatcher.tasks() {
            // Nothing signals the end of a task.
            let _ = tokio::time::timeout(Duration::from_millis(10), self.ended.notified()).await;
        }
    }
}
