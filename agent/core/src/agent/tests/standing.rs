//! The own certificate and the own clock, as the status shows them.

use super::*;
use crate::status::CertificateState;

impl Bench {
    fn with_certificate(issued_at: u64, not_after: u64) -> Self {
        let mut bench = Self::served();
        bench.renew(issued_at, not_after);
        bench
    }

    fn renew(&mut self, issued_at: u64, not_after: u64) {
        let membership = Membership {
            node_id: NodeId(1),
            node_key: key(1),
            addresses: vec![[100, 64, 0, 1].into()],
            claims: Vec::new(),
            issued_at: UnixTime(issued_at),
            not_after: Some(UnixTime(not_after)),
        };
        let signed = Statement::Membership(membership).sign(NETWORK, &root());
        self.say(ConnId(0), ServerMessage::Membership(signed));
        self.outputs();
    }

    /// The state of the certificate, so many seconds after the start.
    fn certificate_at(&mut self, seconds: u64) -> CertificateState {
        self.now = START + Duration::from_secs(seconds);
        self.agent.status(self.now).own.certificate.state
    }
}

#[test]
fn an_end_is_shown_a_day_before_or_in_the_last_third_and_is_gone_with_a_renewal() {
    const DAY: u64 = 24 * 3600;
    let mut long = Bench::with_certificate(NOW_S, NOW_S + 30 * DAY);
    assert_eq!(long.certificate_at(29 * DAY - 1), CertificateState::Good);
    assert_eq!(long.certificate_at(29 * DAY + 1), CertificateState::Ending);
    let mut short = Bench::with_certificate(NOW_S, NOW_S + 90);
    assert_eq!(short.certificate_at(59), CertificateState::Good);
    assert_eq!(short.certificate_at(61), CertificateState::Ending);
    let warnings = short.agent.status(short.now).warnings;
    assert!(warnings[0].contains("ends in 29 s"), "{warnings:?}");
    assert_eq!(short.certificate_at(90), CertificateState::Ended);
    short.renew(NOW_S + 90, NOW_S + 180);
    assert_eq!(short.certificate_at(91), CertificateState::Good);
    assert_eq!(short.agent.status(short.now).warnings, Vec::<String>::new());
}

#[test]
fn the_own_certificate_has_a_deadline_of_its_own() {
    let mut bench = Bench::with_certificate(NOW_S, NOW_S + 90);
    let at = |bench: &Bench| bench.agent.expiry_at.map(|at| at.since(START).as_secs());
    assert_eq!(at(&bench), Some(60));
    bench.at(Duration::from_secs(60));
    assert_eq!(at(&bench), Some(90));
    bench.at(Duration::from_secs(90));
    assert_eq!(at(&bench), None);
}

#[test]
fn a_clock_that_is_off_by_more_than_a_minute_is_shown_until_it_is_right() {
    let mut bench = Bench::served();
    let mut shown = |wall: u64| {
        bench.agent.handle_wall_clock(UnixTime(wall), bench.now);
        let status = bench.agent.status(bench.now);
        (status.own.clock_ahead_seconds, status.warnings.len())
    };
    assert_eq!(shown(NOW_S + 59), (Some(59), 0));
    assert_eq!(shown(NOW_S + 7200), (Some(7200), 1));
    assert_eq!(shown(NOW_S - 7200), (Some(-7200), 1));
    assert_eq!(shown(NOW_S + 59), (Some(59), 1), "not told anew at every second's rounding");
    assert_eq!(shown(NOW_S), (Some(0), 0));
}

#[test]
fn a_clock_at_a_border_of_two_units_is_told_once_and_anew_when_it_moves_by_a_tenth() {
    let mut bench = Bench::served();
    let mut told = |ahead: i64| {
        bench.agent.handle_wall_clock(UnixTime(NOW_S.saturating_add_signed(ahead)), bench.now);
        bench.agent.status(bench.now).warnings.join(" ")
    };
    for border in [120, 7200, 172_800] {
        for sign in [1, -1] {
            told(0);
            let first = told(sign * (border - 1));
            assert!(first.contains("clock is"), "{first}");
            for rounded in [border, border - 1, border + 1, border] {
                assert_eq!(told(sign * rounded), first);
            }
            let farther = told(sign * border * 12 / 10);
            assert_ne!(farther, first, "it moved for good");
            assert_eq!(told(sign * (border * 12 / 10 - 1)), farther);
            assert_eq!(told(sign * (border - 1)), first);
        }
    }
    assert_ne!(told(7200), told(-7200));
}

#[test]
fn peers_whose_certificates_ended_are_counted() {
    let mut bench = Bench::served();
    bench.tell(2, vec![peer_object(2, "b", certificate(2, Some(NOW_S + 60)))], Vec::new());
    assert_eq!(bench.agent.status(bench.now).warnings.len(), 0);
    bench.at(Duration::from_secs(61));
    let warnings = bench.agent.status(bench.now).warnings;
    assert!(warnings[0].contains("1 peers"), "{warnings:?}");
}

#[test]
fn a_session_number_that_is_refused_as_old_is_overtaken_by_ever_longer_leaps() {
    let mut bench = Bench::started(Saved::default(), None);
    let dialled = |output: &Output| {
        let Output::Dial(dial) = output else { return None };
        Some(dial.conn)
    };
    let said = |output: &Output| {
        let Output::Send { message: AgentMessage::Hello(hello), .. } = output else { return None };
        Some(hello.number.boot)
    };
    let enrolled = wire::Enrolled {
        root: root().public().to_bytes().to_vec(),
        membership: certificate(1, None),
        node_id: 1,
        servers: Vec::new(),
        roots: None,
    };
    let (mut boots, mut seconds) = (Vec::new(), 0);
    let mut outputs = bench.outputs();
    while boots.len() < 4 {
        if let Some(conn) = outputs.iter().find_map(dialled) {
            bench.agent.handle_enrolled(conn, &enrolled, bench.now);
            bench.agent.handle_connected(conn, Connected { server: ServerId([1; 16]) }, bench.now);
            boots.extend(bench.outputs().iter().find_map(said));
            let (reason, detail) = (Reason::StaleSession, "an older session".to_owned());
            let refused = Refused { reason, detail, retry_after: None, removal: Vec::new() };
            bench.say(conn, ServerMessage::Refused(refused));
        }
        seconds += 1;
        assert!(seconds < 60, "{boots:?}");
        outputs = bench.outputs();
        outputs.extend(bench.at(Duration::from_secs(seconds)));
    }
    let leaps: Vec<u64> = boots.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(leaps, [1 << 20, 1 << 21, 1 << 22]);
    assert!(bench.agent.boot() > boots[3], "so that the next start counts on from it");
}

#[test]
fn after_a_restart_without_a_server_a_warning_names_the_clock_by_which_certificates_have_ended() {
    const DAY: u64 = 24 * 3600;
    let mut bench = Bench::with_certificate(NOW_S, NOW_S + 30 * DAY);
    bench.tell(2, vec![peer_object(2, "b", certificate(2, Some(NOW_S + 30 * DAY)))], Vec::new());
    let (saved, cache) = (bench.agent.saved(), bench.agent.map_cache());
    let mut again = Bench::started(saved, Some(cache::decode(&cache).unwrap()));
    again.agent.handle_wall_clock(UnixTime(NOW_S + 40 * DAY), again.now);
    let warnings = again.agent.status(again.now).warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let names_it =
        |warning: &String| warning.contains("this machine's clock, 40 d after the newest certificate");
    assert!(warnings.iter().all(names_it), "{warnings:?}");

    again.agent.handle_wall_clock(UnixTime(NOW_S - 2 * DAY), again.now);
    let warnings = again.agent.status(again.now).warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("2 d behind the newest certificate"), "{warnings:?}");
}

#[test]
fn a_certificate_that_was_issued_while_a_clock_ran_ahead_ends_no_other() {
    const HOUR: u64 = 3600;
    let mut bench = Bench::served();
    bench.heartbeat(version(1), NOW_S);
    let short = certificate(2, Some(NOW_S + HOUR));
    bench.tell(2, vec![peer_object(2, "b", short)], Vec::new());
    bench.renew(NOW_S + 6 * HOUR, NOW_S + 30 * HOUR);
    let peer = bench.agent.find_peer("b").expect("it is known");
    assert!(bench.agent.peers[&peer].is_usable(), "by the servers' time it has not ended");
    bench.at(Duration::from_secs(HOUR + 1));
    assert!(!bench.agent.peers[&peer].is_usable());
}
