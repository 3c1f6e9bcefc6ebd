//! Hears of what other processes invalidate.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::connections::Target;

/// How long making the connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long to wait before another try; the cache polls meanwhile.
const PAUSE: Duration = Duration::from_millis(500);

/// Subscribes to `channel` and wakes `changed` for each message, and whenever one may have been
/// missed. Ends when the tier is dropped, with which `changed` goes.
pub(crate) async fn listen(target: Target, channel: String, changed: Weak<Notify>) {
    for server in 0.. {
        let Some(notify) = changed.upgrade() else { return };
        // A message may have come while there was no subscription.
        notify.notify_one();
        drop(notify);
        // An error tells nothing that reads and writes do not tell.
        let _ = until_it_ends(&target, server, &channel, &changed).await;
        sleep(PAUSE).await;
    }
}

async fn until_it_ends(
    target: &Target,
    server: usize,
    channel: &str,
    changed: &Weak<Notify>,
) -> Option<()> {
    let client = target.client(server).ok()?;
    let mut subscription = timeout(CONNECT, client.get_async_pubsub()).await.ok()?.ok()?;
    timeout(CONNECT, subscription.subscribe(channel)).await.ok()?.ok()?;
    tell(changed)?;
    let mut messages = subscription.into_on_message();
    while messages.next().await.is_some() {
        tell(changed)?;
    }
    Some(())
}

fn tell(changed: &Weak<Notify>) -> Option<()> {
    let changed: Arc<Notify> = changed.upgrade()?;
    changed.notify_one();
    Some(())
}
