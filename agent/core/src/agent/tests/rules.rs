//! What others may open here, as the data plane is told it.

use super::*;
use proto::rule::{Rule, SetId};

fn rule(id: u8, sources: &[&str], sets: &[u64]) -> Object {
    let sources = sources.iter().map(|source| source.parse().unwrap()).collect();
    let source_sets = sets.iter().copied().map(SetId).collect();
    let content = Content::Rule(Rule { source_sets, ..Rule::all_from(sources) });
    Object::new(&content, vec![id]).unwrap()
}

fn sources(set: u64, part: u8, source: &str) -> Object {
    let content = Content::Sources(vec![source.parse().unwrap()]);
    Object { id: ObjectId::sources(SetId(set), &[part]), ..Object::new(&content, Vec::new()).unwrap() }
}

/// The sources of every rule, each time that rules are told.
fn told(outputs: &[Output]) -> Vec<Vec<String>> {
    let rules = outputs.iter().filter_map(|output| {
        let Output::Tunnel(TunnelCommand::SetRules(rules)) = output else { return None };
        Some(rules.iter().flat_map(|rule| &rule.sources).map(ToString::to_string).collect())
    });
    rules.collect()
}

#[test]
fn rules_are_told_when_they_change_and_only_then() {
    let mut bench = Bench::served();
    assert!(told(&bench.outputs()).is_empty(), "without any, the data plane is as it began");
    let outputs = bench.tell(2, vec![rule(1, &["100.64.0.0/10"], &[])], Vec::new());
    assert_eq!(told(&outputs), [["100.64.0.0/10"]]);
    let peer = peer_object(2, "b", certificate(2, None));
    assert!(told(&bench.tell(3, vec![peer], Vec::new())).is_empty());
    // A set that nobody names changes nothing.
    assert!(told(&bench.tell(4, vec![sources(9, 0, "100.64.0.9/32")], Vec::new())).is_empty());
    let outputs = bench.tell(5, Vec::new(), vec![ObjectId::rule(vec![1])]);
    assert_eq!(told(&outputs), [Vec::<String>::new()]);
}

#[test]
fn a_set_that_changes_changes_the_rules_that_name_it() {
    let mut bench = Bench::served();
    bench.tell(2, vec![rule(1, &["100.64.0.1/32"], &[5]), sources(5, 0, "100.64.0.2/32")], Vec::new());
    let outputs = bench.tell(3, vec![sources(5, 1, "100.64.0.3/32")], Vec::new());
    assert_eq!(told(&outputs), [["100.64.0.1/32", "100.64.0.2/32", "100.64.0.3/32"]]);
}

#[test]
fn parts_of_a_map_change_no_rules_until_it_is_whole() {
    let mut bench = Bench::served();
    let whole = bench.step(2, vec![rule(1, &[], &[5]), sources(5, 0, "100.64.0.2/32")], Vec::new());
    let [first, second] = &whole.put[..] else { panic!("two objects") };
    let part = Delta { put: vec![first.clone()], last: false, ..whole.clone() };
    bench.say(ConnId(0), ServerMessage::Map(part));
    assert!(told(&bench.outputs()).is_empty());
    let rest = Delta { put: vec![second.clone()], ..whole.clone() };
    bench.say(ConnId(0), ServerMessage::Map(rest));
    assert_eq!(told(&bench.outputs()), [["100.64.0.2/32"]]);
}

#[test]
fn rules_come_from_the_disk_after_the_interface_and_before_the_peers() {
    let mut bench = Bench::served();
    let peer = peer_object(2, "b", certificate(2, None));
    bench.tell(7, vec![rule(1, &["100.64.0.0/10"], &[]), peer], Vec::new());
    let (saved, cache) = (bench.agent.saved(), bench.agent.map_cache());
    let mut again = Bench::started(saved, Some(cache::decode(&cache).unwrap()));
    let outputs = again.outputs();
    assert_eq!(told(&outputs), [["100.64.0.0/10"]]);
    let place = |what: fn(&Output) -> bool| outputs.iter().position(what).unwrap();
    let rules = place(|output| matches!(output, Output::Tunnel(TunnelCommand::SetRules(_))));
    assert!(place(|output| matches!(output, Output::Configure { .. })) < rules);
    assert!(rules < place(|output| matches!(output, Output::Tunnel(TunnelCommand::Upsert { .. }))));
}

#[test]
fn a_network_that_is_left_leaves_no_rules_behind() {
    let mut bench = Bench::served();
    bench.tell(2, vec![rule(1, &["100.64.0.0/10"], &[])], Vec::new());
    bench.agent.logout(bench.now);
    bench.outputs();
    // The data plane that comes next begins without any, and need not be told so.
    bench.agent.on_rules_changed(true);
    bench.agent.tell_rules();
    assert!(told(&bench.outputs()).is_empty());
}
