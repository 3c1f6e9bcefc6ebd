//! The one import point for locks and atomics: parking_lot and std normally, shuttle's under
//! `--cfg shuttle`, where every operation is a point at which the scheduler may switch threads.
//!
//! The lock face is the small part of parking_lot's that the crate uses, so that both sides can
//! have it.

#[cfg(not(shuttle))]
mod imp {
    pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
    pub(crate) use std::sync::atomic;
    pub(crate) use std::thread::ThreadId;
    pub(crate) use std::thread_local;

    /// Which thread this is.
    pub(crate) fn thread_id() -> ThreadId {
        std::thread::current().id()
    }

    /// Unlocks and hands the lock to a waiter, if there is one, instead of letting this thread take
    /// it again at once: for loops that lock the same shard bite after bite.
    pub(crate) fn unlock_fair<T>(guard: RwLockWriteGuard<'_, T>) {
        RwLockWriteGuard::unlock_fair(guard);
    }

    /// Where threads wait for a change of what a mutex protects.
    #[derive(Debug, Default)]
    pub(crate) struct Condvar(parking_lot::Condvar);

    impl Condvar {
        /// Unlocks, waits, and locks again. May return without a reason.
        pub(crate) fn wait<'a, T>(&self, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(&mut guard);
            guard
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// Lets other threads go on, for longer each time: for the rare writer that finds all room
    /// taken by other writers. 24 times come to some 20 ms.
    pub(crate) fn back_off(times: u32) {
        match times.checked_sub(4) {
            None => std::thread::yield_now(),
            Some(more) => std::thread::sleep(std::time::Duration::from_micros(50 << more.min(5))),
        }
    }
}

/// Tasks and time, for what is loaded in the background.
#[cfg(not(shuttle))]
pub(crate) mod task {
    use std::future::Future;

    use tokio::runtime::Handle;

    /// Where to spawn tasks.
    #[derive(Debug)]
    pub(crate) struct Spawner(Handle);

    impl Spawner {
        /// That of the runtime this is called in.
        pub(crate) fn current() -> Option<Self> {
            Handle::try_current().ok().map(Self)
        }

        /// Spawns a task that nobody waits for. On a runtime that is shutting down it is dropped.
        pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
            drop(self.0.spawn(task));
        }
    }
}

#[cfg(shuttle)]
pub(crate) mod task {
    use std::future::Future;

    #[derive(Debug)]
    pub(crate) struct Spawner;

    impl Spawner {
        #[allow(clippy::unnecessary_wraps)]
        pub(crate) fn current() -> Option<Self> {
            Some(Self)
        }

        #[allow(clippy::unused_self)]
        pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
            drop(shuttle::future::spawn(task));
        }
    }
}

#[cfg(shuttle)]
mod imp {
    use std::time::Duration;

    pub(crate) use shuttle::sync::atomic;
    pub(crate) use shuttle::sync::{RwLockReadGuard, RwLockWriteGuard};
    pub(crate) use shuttle::thread::ThreadId;
    pub(crate) use shuttle::thread_local;

    pub(crate) fn thread_id() -> ThreadId {
        shuttle::thread::current().id()
    }

    /// How often a timed acquisition tries before it counts as timed out; shuttle has no clock.
    const TRIES: usize = 3;

    /// As parking_lot's lock: who comes to read while a writer waits, waits behind it. Shuttle's own
    /// lets readers overtake writers and so would miss the deadlocks that this can bring about.
    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T> {
        lock: shuttle::sync::RwLock<T>,
        /// Held by a writer while it waits; everyone else comes through it.
        door: Mutex<()>,
    }

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self { lock: shuttle::sync::RwLock::new(value), door: Mutex::new(()) }
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            drop(self.door.lock());
            self.lock.read().unwrap_or_else(|poisoned| poisoned.into_inner())
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            let _door = self.door.lock();
            self.lock.write().unwrap_or_else(|poisoned| poisoned.into_inner())
        }

        pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
            drop(self.door.try_lock()?);
            self.lock.try_read().ok()
        }

        pub(crate) fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
            self.lock.try_write().ok()
        }

        pub(crate) fn try_read_for(&self, _: Duration) -> Option<RwLockReadGuard<'_, T>> {
            retry(|| self.try_read())
        }

        pub(crate) fn try_write_for(&self, _: Duration) -> Option<RwLockWriteGuard<'_, T>> {
            retry(|| self.try_write())
        }
    }

    fn retry<G>(mut attempt: impl FnMut() -> Option<G>) -> Option<G> {
        for _ in 0..TRIES {
            if let Some(guard) = attempt() {
                return Some(guard);
            }
            shuttle::thread::yield_now();
        }
        None
    }

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> shuttle::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
        }

        pub(crate) fn try_lock(&self) -> Option<shuttle::sync::MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Condvar(shuttle::sync::Condvar);

    impl Condvar {
        pub(crate) fn wait<'a, T>(
            &self,
            guard: shuttle::sync::MutexGuard<'a, T>,
        ) -> shuttle::sync::MutexGuard<'a, T> {
            self.0.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner())
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    pub(crate) fn unlock_fair<T>(guard: RwLockWriteGuard<'_, T>) {
        drop(guard);
    }

    pub(crate) fn back_off(_: u32) {
        shuttle::thread::yield_now();
    }
}

pub(crate) use imp::*;
