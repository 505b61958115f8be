//! What the service manager is told: when requests are served, that every thread still turns, and that the server stops.
//!
//! systemd listens at a socket that it names in the environment (`sd_notify(3)`). Without that name nothing is told. The
//! messages are datagrams of a few bytes, sent by the thread that supervises the others and serves nobody.

use sd_notify::NotifyState;

use crate::shard::metrics::Scraper;

/// Tells that requests are served.
pub(super) fn ready(places: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("serving {places}"))]);
}

/// Tells that the server stops.
pub(super) fn stopping() {
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("stopping: requests are drained, memtables are flushed"),
    ]);
}

/// Feeds the watchdog, if there is one, whenever every thread has answered. A thread that hangs is never fed for.
pub(super) async fn feed_watchdog(scraper: Scraper) {
    let Some(time) = sd_notify::watchdog_enabled() else { return };
    loop {
        if !scraper.every_thread_answers().await {
            return; // the server has ended
        }
        tell(&[NotifyState::Watchdog]);
        tokio::time::sleep(time / 3).await;
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told of the state of the server");
    }
}
