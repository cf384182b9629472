//! The scenarios: what the mesh must show, on real processes in the lab.
//!
//! `cargo test -p netns-tests --release [-- FILTER..] [--list]`. How each may run beside others is its
//! [`Pace`]. The last line is `N passed, N failed`, and the exit code says the same.

#![expect(clippy::print_stdout, reason = "the report is this program's output")]

mod admission;
mod bad_agent_input;
mod bad_claims;
mod bad_server_input;
mod changes;
mod clocks;
mod crowd;
mod database;
mod database_apart;
mod database_away;
mod database_back;
mod database_start;
mod database_tls;
mod failover;
mod filter;
mod frozen;
mod hostile;
mod identity;
mod idle;
mod jobs;
mod kills;
mod lab;
mod lab_database;
mod life;
mod load_balancer;
mod looking;
mod many;
mod membership;
mod names;
mod one_address;
mod outage;
mod removal;
mod replaced;
mod restarts;
mod rogue;
mod root;
mod settings;
mod shared;
mod shared_behind;
mod shared_checks;
mod shared_exclusive;
mod shared_machine;
mod shared_order;
mod shared_tcp;
mod starved;
mod two_servers;
mod wg;
mod wg_life;
mod wg_mtu;
mod wg_paths;
mod wg_workers;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use netns_tests::binaries::Binaries;
use netns_tests::figures::ms;
use netns_tests::sandbox;
use netns_tests::scenario::{Scenario, Verdict, log_tails};

/// How a scenario may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Waits for minutes and takes no processor time: beside all others.
    Background,
    /// Long, with traffic, and bounds that a busy machine keeps: [`AT_ONCE`] together, and first.
    Together,
    /// Measures milliseconds: one at a time, when those together are done.
    Alone,
}

struct Case {
    name: &'static str,
    pace: Pace,
    run: fn(&mut Scenario) -> Result<()>,
}

const fn alone(name: &'static str, run: fn(&mut Scenario) -> Result<()>) -> Case {
    Case { name, pace: Pace::Alone, run }
}

const fn together(name: &'static str, run: fn(&mut Scenario) -> Result<()>) -> Case {
    Case { name, pace: Pace::Together, run }
}

const fn background(name: &'static str, run: fn(&mut Scenario) -> Result<()>) -> Case {
    Case { name, pace: Pace::Background, run }
}

/// So many of [`Pace::Together`] keep two cores busy and leave none of them waiting for long.
const AT_ONCE: usize = 8;

/// All there are; those of one pace begin in this order.
const CASES: &[Case] = &[
    alone("lab_gap_meter_counts_what_a_cut_loses", lab::gap_meter_counts_what_a_cut_loses),
    alone("lab_one_way_faults_and_loss_do_what_they_say", lab::one_way_faults_and_loss_do_what_they_say),
    alone("lab_capture_sees_a_packet_and_silence", lab::capture_sees_a_packet_and_silence),
    alone("lab_routes_and_addresses_move", lab::routes_and_addresses_move),
    alone("lab_signals_reach_processes_and_drop_ends_them", lab::signals_reach_processes_and_drop_ends_them),
    alone("lab_postgres_syncs_and_goes", lab::postgres_syncs_and_goes),
    alone("lab_postgres_does_what_it_is_told", lab_database::postgres_does_what_it_is_told),
    alone("lab_proxy_does_what_it_says", lab_database::proxy_does_what_it_says),
    alone("server_killed", failover::killed),
    alone("server_drained", failover::drained),
    alone("server_frozen", failover::frozen),
    alone("server_cut_off", failover::cut_off),
    alone("server_hears_nothing", failover::deaf),
    alone("server_is_not_heard", failover::mute),
    alone("server_unplugged", failover::unplugged),
    alone("two_servers_are_one", two_servers::are_one),
    alone("anycast_route_moves", one_address::anycast),
    alone("shared_ip_moves", one_address::shared_ip),
    alone(
        "load_balancer_nginx_with_servers_of_their_own_address",
        load_balancer::nginx_with_servers_of_their_own_address,
    ),
    alone(
        "load_balancer_haproxy_with_servers_of_their_own_address",
        load_balancer::haproxy_with_servers_of_their_own_address,
    ),
    alone("load_balancer_nginx_alone", load_balancer::nginx_alone),
    alone("load_balancer_haproxy_alone", load_balancer::haproxy_alone),
    alone("load_balancer_gateway_by_names", load_balancer::gateway_by_names),
    alone("rogue_server_is_left_for_a_good_one", rogue::is_left_for_a_good_server),
    alone("dynamic_dns", names::dynamic_dns),
    alone(
        "load_balancer_a_proxy_that_terminates_tls_is_refused",
        load_balancer::a_proxy_that_terminates_tls_is_refused,
    ),
    alone("rolling_restart_loses_nothing", restarts::rolling_restart_loses_nothing),
    alone(
        "no_server_a_never_used_peer_answers_its_first_ping",
        outage::a_never_used_peer_answers_its_first_ping,
    ),
    alone("no_server_restarted_agents_carry_traffic", outage::agents_restarted_without_servers_carry_traffic),
    alone("changes_reach_the_other_server_on_sqlite", changes::reach_the_other_server_on_sqlite),
    alone("changes_reach_the_other_server_on_postgres", changes::reach_the_other_server_on_postgres),
    alone(
        "second_server_needs_the_database_url_alone",
        changes::a_second_server_needs_the_database_url_alone,
    ),
    alone("database_unheard_by_one_server", database_apart::unheard),
    alone("database_away_when_servers_start", database_start::away),
    alone("database_full", database_start::full),
    alone("database_forged_notifications", database_start::forged_notifications),
    alone("database_promoted", database_back::promoted),
    alone("database_stopped_for_a_while", database_away::stopped),
    alone("database_hangs_for_a_while", database_away::hangs),
    alone("status_with_10_000_peers_is_quick", crowd::status_with_10_000_peers_is_quick),
    alone("life_commands_keep_their_contract", life::commands_keep_their_contract),
    alone("life_an_agent_without_enrolment_says_so", life::an_agent_without_enrolment_says_so),
    alone("life_sigterm_leaves_nothing_behind", life::sigterm_leaves_nothing_behind),
    alone("life_the_start_after_kill_9_cleans_up", life::the_start_after_kill_9_cleans_up),
    alone("settings_a_keepalive_reaches_open_sessions", settings::a_keepalive_reaches_open_sessions),
    alone(
        "settings_a_setup_key_of_another_network_changes_nothing",
        settings::a_setup_key_of_another_network_changes_nothing,
    ),
    together("exclusive_address_has_one_holder", shared_exclusive::address_has_one_holder),
    together("exclusive_stays_while_nobody_can_know", shared_exclusive::stays_while_nobody_can_know),
    together("shared_address_answers_and_goes_with_its_node", shared::address_answers_and_goes_with_its_node),
    together(
        "shared_subnet_is_routed_and_its_routers_leave_nothing_behind",
        shared::subnet_is_routed_and_its_routers_leave_nothing_behind,
    ),
    together(
        "shared_checks_move_clients_from_what_is_broken",
        shared_checks::move_clients_from_what_is_broken,
    ),
    together("shared_checks_hand_an_exclusive_claim_over", shared_checks::hand_an_exclusive_claim_over),
    together("shared_checks_by_commands_that_misbehave", shared_checks::by_commands_that_misbehave),
    together("shared_hooks_are_told_of_the_first_and_the_last_user", shared_checks::hooks_are_told_of_users),
    together(
        "shared_machine_without_nft_serves_its_other_claims",
        shared_machine::without_nft_serves_its_other_claims,
    ),
    together(
        "shared_machine_without_ipv6_serves_its_ipv4_claim",
        shared_machine::without_ipv6_serves_its_ipv4_claim,
    ),
    together(
        "shared_machine_says_that_a_firewall_drops",
        shared_machine::behind_a_firewall_that_drops_says_so,
    ),
    together(
        "shared_machine_forwards_until_its_last_agent_ends",
        shared_machine::forwards_until_its_last_agent_ends,
    ),
    together("shared_tcp_idle_connection_is_reset", shared_tcp::idle_connection_is_reset_and_made_again),
    together(
        "shared_tcp_masqueraded_connection_is_reset",
        shared_tcp::connection_through_masquerading_routers_is_reset,
    ),
    together("shared_tcp_routed_connection_goes_on", shared_tcp::connection_through_plain_routers_goes_on),
    together("shared_address_has_a_secondary_by_prefix", shared_order::primary_and_secondary_by_prefix),
    together("shared_address_is_served_by_the_next_of_four", shared_order::four_serve_one_after_another),
    together("shared_ipv6_address_and_subnet", shared_behind::ipv6_address_and_subnet),
    together("shared_subnet_keeps_streams_when_a_router_dies", shared_behind::streams_outlive_a_router),
    alone("bad_input_claims", bad_claims::are_refused),
    together("bad_input_claims_of_a_hostile_member", bad_claims::of_a_hostile_member),
    alone("life_logout_ends_the_membership", life::logout_ends_the_membership),
    alone("bad_input_server_lists", bad_agent_input::server_lists),
    alone(
        "bad_input_a_good_server_among_bad_ones_serves",
        bad_agent_input::a_good_server_among_bad_ones_serves,
    ),
    alone("bad_input_strangers_at_the_port", bad_agent_input::strangers_at_the_port),
    alone("bad_input_setup_keys", bad_agent_input::setup_keys),
    alone("bad_input_timers", bad_agent_input::timers),
    alone("bad_input_a_host_that_refuses", bad_agent_input::a_host_that_refuses),
    alone("bad_input_a_corrupt_key_file", bad_agent_input::a_corrupt_key_file),
    alone("bad_input_a_damaged_map_cache", bad_agent_input::a_damaged_map_cache),
    alone("bad_input_a_taken_wireguard_port", bad_agent_input::a_taken_wireguard_port),
    alone("bad_input_database_urls", bad_server_input::database_urls),
    alone("bad_input_a_newer_schema", bad_server_input::a_newer_schema),
    alone("bad_input_a_taken_server_port", bad_server_input::a_taken_port),
    together("all_faults_over_200_s_lose_nothing", restarts::all_faults_over_200_s_lose_nothing),
    together("lone_server_back_after_60_s", outage::lone_server_back_after_60_s),
    together("kill_9_of_everything_on_postgres", kills::everything_on_postgres),
    together("kill_9_of_everything_on_sqlite", kills::everything_on_sqlite),
    together("database_connections_killed_at_random", database_away::connections_killed),
    together(
        "no_server_open_tunnels_lose_nothing_in_60_s",
        outage::open_tunnels_lose_nothing_in_60_s_without_servers,
    ),
    together("database_cut_from_one_server", database_apart::cut),
    together("job_a_frozen_holder_acts_on_nothing", jobs::a_frozen_holder_acts_on_nothing),
    together(
        "job_who_sits_at_a_server_without_its_database_stays",
        jobs::who_sits_at_a_server_without_its_database_stays,
    ),
    together("database_slow", database_away::slow),
    together("lone_server_back_after_10_s", outage::lone_server_back_after_10_s),
    alone("wg_is_configured_by_wg", wg::is_configured_by_wg),
    alone("wg_preshared_key_is_added_without_loss", wg::preshared_key_is_added_without_loss),
    alone("wg_endpoints_follow_their_peers", wg::endpoints_follow_their_peers),
    alone(
        "wg_the_most_specific_peer_is_spoken_to_and_believed",
        wg::the_most_specific_peer_is_spoken_to_and_believed,
    ),
    alone("wg_thousands_of_peers_are_loaded_at_once", wg::thousands_of_peers_are_loaded_at_once),
    together("wg_two_workers_load_thousands_of_peers", wg_workers::load_thousands_of_peers),
    together("wg_two_workers_hand_over_in_order", wg_workers::hand_over_in_order),
    together("wg_two_workers_move_to_another_namespace", wg_workers::move_to_another_namespace),
    together("two_workers_carry_a_mesh", wg_workers::carry_a_mesh),
    together("wg_two_workers_keep_every_flow_in_order", wg_workers::keep_every_flow_in_order),
    alone("many_peers_of_which_few_are_active", many::peers_of_which_few_are_active),
    alone("many_peers_woken_by_packets", many::peers_woken_by_packets),
    alone("many_peers_that_begin_handshakes", many::peers_that_begin_handshakes),
    alone("wg_carries_tcp_over_both_families", wg::carries_tcp_over_both_families),
    alone("wg_takes_over_what_was_opened_for_it", wg_life::takes_over_what_was_opened_for_it),
    together("wg_quick_brings_it_up_and_down", wg_life::wg_quick_brings_it_up_and_down),
    together("wg_moves_to_another_namespace", wg_life::moves_to_another_namespace),
    alone("wg_starts_again_after_kill_9_and_only_once", wg_life::starts_again_after_kill_9_and_only_once),
    together(
        "wg_the_meshs_interface_is_shown_and_not_set",
        wg_life::the_meshs_interface_is_shown_and_not_set,
    ),
    together("wg_copies_from_elsewhere_move_nobody", wg_paths::copies_from_elsewhere_move_nobody),
    together("wg_sources_stay_and_may_go", wg_paths::sources_stay_and_may_go),
    together("wg_speaks_between_link_local_addresses", wg_paths::speaks_between_link_local_addresses),
    together("wg_carries_packets_of_34_kilobytes", wg_paths::carries_packets_of_34_kilobytes),
    together("wg_every_mtu_carries_everything", wg_mtu::every_mtu_carries_everything),
    together("wg_one_interface_carries_another", wg_paths::one_interface_carries_another),
    together("wg_keepalives_hold_a_translator_open", wg::keepalives_hold_a_translator_open),
    together("wg_a_fault_is_no_good_end", wg_life::a_fault_is_no_good_end),
    together("wg_speaks_with_wireguard_go", wg::speaks_with_wireguard_go),
    together("wg_hostile_callers_harm_nobody", wg_life::hostile_callers_harm_nobody),
    together(
        "capture_shows_what_crosses_and_ends_with_its_client",
        looking::captures_show_what_crosses_and_end_with_their_client,
    ),
    together("counters_are_told_everywhere", looking::counters_are_told_everywhere),
    together("metrics_are_served_in_the_overlay", looking::metrics_are_served_in_the_overlay),
    together("capture_of_a_plain_interface", looking::a_plain_interface_is_captured),
    together(
        "admission_one_setup_key_on_both_servers_at_once",
        admission::one_setup_key_on_both_servers_at_once,
    ),
    together("admission_a_stale_disconnect_changes_nothing", admission::a_stale_disconnect_changes_nothing),
    together("clocks_jump_while_everything_runs", clocks::jump_while_everything_runs),
    together(
        "clocks_a_restart_with_a_wrong_one_and_no_server",
        clocks::a_restart_with_a_wrong_one_and_no_server,
    ),
    together("replaced_a_lost_machine", replaced::a_lost_machine),
    together("replaced_a_lost_machine_with_a_wrapped_root", replaced::a_lost_machine_with_a_wrapped_root),
    together("replaced_sqlite_by_postgres", replaced::sqlite_by_postgres),
    together(
        "replaced_sqlite_by_postgres_with_a_wrapped_root",
        replaced::sqlite_by_postgres_with_a_wrapped_root,
    ),
    alone("root_is_changed_under_traffic", root::is_changed_under_traffic),
    together("filter_what_a_map_does_not_allow_is_refused", filter::what_a_map_does_not_allow_is_refused),
    together("removal_reaches_all_by_servers_or_tunnels", removal::reaches_all_by_servers_or_tunnels),
    together("identity_a_copied_server_is_refused", identity::a_copied_server_is_refused),
    together(
        "hostile_garbage_floods_and_half_open_connections_harm_nobody",
        hostile::garbage_floods_and_half_open_connections_harm_nobody,
    ),
    together("hostile_a_server_without_descriptors_goes_on", starved::of_descriptors),
    together("frozen_for_ages_a_server_acts_on_nothing_old", frozen::acts_on_nothing_old),
    together("database_restored_under_running_servers", database_back::restored_under_running_servers),
    together("database_restored_and_nobody_remembers", database_back::restored_and_nobody_remembers),
    together("database_is_who_it_should_be", database_tls::who_it_should_be),
    background("wg_two_workers_renew_sessions_in_order", wg_workers::renew_sessions_in_order),
    background("wg_a_persistent_keepalive_never_gives_up", wg::a_persistent_keepalive_never_gives_up),
    background("wg_a_session_is_renewed_under_traffic", wg_paths::a_session_is_renewed_under_traffic),
    background(
        "wg_a_session_that_nobody_uses_is_not_renewed",
        wg_paths::a_session_that_nobody_uses_is_not_renewed,
    ),
    background("no_server_for_ten_minutes_costs_nothing", outage::ten_minutes_without_servers_cost_nothing),
    background("membership_that_never_ends_needs_no_server", membership::never_ends),
    background("membership_ends_by_time_and_one_server_mends_it", membership::ends_by_time),
    background("hostile_who_takes_nothing_is_ended", starved::of_a_reader),
    background(
        "idle_tunnel_is_silent_and_wakes",
        idle::an_idle_tunnel_is_silent_and_wakes_with_its_next_packet,
    ),
    background(
        "idle_always_connects_and_lazy_stays",
        idle::a_peer_made_always_connects_and_one_made_lazy_stays_until_its_timeout,
    ),
    background("idle_an_expired_peer_is_never_dialled", idle::an_expired_peer_is_never_dialled),
];

/// What cargo and people pass.
struct Arguments {
    filters: Vec<String>,
    list: bool,
}

impl Arguments {
    fn parse() -> Self {
        let (flags, filters): (Vec<String>, Vec<String>) =
            std::env::args().skip(1).partition(|argument| argument.starts_with('-'));
        Self { filters, list: flags.iter().any(|flag| flag == "--list") }
    }

    fn wants(&self, case: &Case) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| case.name.contains(filter.as_str()))
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let wanted: Vec<&Case> = CASES.iter().filter(|case| arguments.wants(case)).collect();
    if arguments.list {
        wanted.iter().for_each(|case| println!("{}: test", case.name));
        return Ok(());
    }
    let needs_binaries = wanted.iter().any(|case| !case.name.starts_with("lab_"));
    if needs_binaries && !sandbox::is_inside() {
        Binaries::build()?;
    }
    sandbox::enter()?;
    sandbox::own_run_directory()?;
    let binaries = if needs_binaries { Binaries::locate()? } else { Binaries::none() };
    let run = Run::new(binaries)?;
    run.all(&wanted);
    std::process::exit(run.conclude());
}

/// One run of many scenarios.
struct Run {
    root: PathBuf,
    binaries: Binaries,
    passed: AtomicUsize,
    /// Names, and what was wrong.
    failed: Mutex<Vec<(&'static str, Verdict)>>,
    output: Mutex<()>,
}

impl Run {
    fn new(binaries: Binaries) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("holdfast-lab-").tempdir()?.keep();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&root, open).context("cannot open the run's directory to Postgres' user")?;
        Ok(Self {
            root,
            binaries,
            passed: AtomicUsize::new(0),
            failed: Mutex::default(),
            output: Mutex::new(()),
        })
    }

    fn all(&self, cases: &[&'static Case]) {
        let at = |pace| cases.iter().copied().filter(move |case| case.pace == pace);
        std::thread::scope(|scope| {
            at(Pace::Background).for_each(|case| drop(scope.spawn(|| self.one(case))));
            let waiting = Mutex::new(at(Pace::Together));
            let next = || waiting.lock().ok().and_then(|mut waiting| waiting.next());
            std::thread::scope(|together| {
                for _ in 0..AT_ONCE {
                    together.spawn(|| std::iter::from_fn(next).for_each(|case| self.one(case)));
                }
            });
            at(Pace::Alone).for_each(|case| self.one(case));
        });
    }

    fn one(&self, case: &'static Case) {
        let verdict = match Scenario::new(case.name, &self.root, &self.binaries) {
            Ok(mut scenario) => {
                let result = caught(case, &mut scenario);
                scenario.conclude(result)
            }
            Err(error) => Verdict::not_started(&self.root, &error),
        };
        self.print(case, &verdict);
        if verdict.is_ok() {
            self.passed.fetch_add(1, Ordering::Relaxed);
            remove(&verdict.directory);
        } else if let Ok(mut failed) = self.failed.lock() {
            failed.push((case.name, verdict));
        }
    }

    fn print(&self, case: &Case, verdict: &Verdict) {
        let _one_at_a_time = self.output.lock();
        let word = if verdict.is_ok() { "ok" } else { "FAILED" };
        println!("{} .. {word} ({})", case.name, ms(verdict.took));
        verdict.notes.iter().for_each(|note| println!("    {note}"));
        verdict.failures.iter().for_each(|failure| println!("  ! {failure}"));
        if !verdict.is_ok() {
            println!("  logs in {}:\n{}", verdict.directory.display(), log_tails(&verdict.directory, 12));
        }
    }

    /// The summary, which repeats what was wrong, for readers of the end alone; returns the exit code.
    fn conclude(self) -> i32 {
        let passed = self.passed.into_inner();
        let failed = self.failed.into_inner().unwrap_or_default();
        for (name, verdict) in &failed {
            println!("FAILED: {name}");
            verdict.notes.iter().for_each(|note| println!("    {note}"));
            verdict.failures.iter().for_each(|failure| println!("  ! {failure}"));
        }
        println!("{passed} passed, {} failed", failed.len());
        if failed.is_empty() {
            remove(&self.root);
        }
        i32::from(!failed.is_empty())
    }
}

/// Runs a case; a panic in it is a failure of this case alone.
fn caught(case: &Case, scenario: &mut Scenario) -> Result<()> {
    let run = std::panic::AssertUnwindSafe(|| (case.run)(scenario));
    std::panic::catch_unwind(run).unwrap_or_else(|_| Err(anyhow::anyhow!("the scenario panicked")))
}

fn remove(directory: &Path) {
    if let Err(error) = std::fs::remove_dir_all(directory) {
        println!("  cannot remove {}: {error}", directory.display());
    }
}
