//! CLOCK_BOOTTIME, which goes on while the machine sleeps, and a timer on it: it expires at once when the machine wakes too late.

use agent_core::BootTime;
use nix::{
    sys::{
        time::TimeSpec,
        timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    time::{ClockId, clock_gettime},
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};
use tokio::io::unix::AsyncFd;

pub(crate) fn boot_time() -> BootTime {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39");
    BootTime::from_duration(Duration::from(now))
}

/// Wakes the event loop at a moment.
pub(crate) struct Alarm {
    timer: AsyncFd<Timer>,
    set_to: Option<BootTime>,
}

impl Alarm {
    /// Must be called in a tokio runtime.
    pub(crate) fn new() -> io::Result<Self> {
        let timer =
            TimerFd::new(TimerClock::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // SAFETY: `Timer` gives the same descriptor for as long as it lives, and is the only one to close it.
        let timer = unsafe { AsyncFd::register(Timer(timer)) }?;
        Ok(Self { timer, set_to: None })
    }

    pub(crate) fn set(&mut self, at: Option<BootTime>) -> io::Result<()> {
        if at == self.set_to {
            return Ok(());
        }
        self.set_to = at;
        match at {
            Some(at) => {
                // A moment in the past expires at once; zero would switch the timer off.
                let at = at.since_boot().max(Duration::from_nanos(1));
                let at = Expiration::OneShot(TimeSpec::from_duration(at));
                self.timer.get_ref().0.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            }
            None => self.timer.get_ref().0.unset()?,
        }
        Ok(())
    }

    /// Cancel-safe.
    pub(crate) async fn expired(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.timer.readable().await?;
            match ready.try_io(|timer| timer.get_ref().0.wait().map_err(io::Error::from)) {
                Ok(expired) => {
                    self.set_to = None;
                    return expired;
                }
                Err(_would_block) => {}
            }
        }
    }
}

struct Timer(TimerFd);

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_expires_at_its_moment_and_one_in_the_past_at_once() {
        let mut alarm = Alarm::new().unwrap();
        for at in [BootTime::default(), boot_time() + Duration::from_millis(20)] {
            alarm.set(Some(at)).unwrap();
            alarm.expired().await.unwrap();
            assert!(boot_time() >= at);
        }
    }

    #[tokio::test]
    async fn an_alarm_that_is_set_anew_forgets_its_old_moment() {
        let mut alarm = Alarm::new().unwrap();
        alarm.set(Some(boot_time())).unwrap();
        alarm.set(None).unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(30), alarm.expired()).await;
        assert!(waited.is_err());
    }
}
