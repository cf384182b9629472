//! Which connections break when a prefix goes to another node.

use super::*;

/// When a prefix goes from the first to the second.
fn breaks(first: Claim, second: Claim) -> Option<bool> {
    let mut world = World::new(&[first, second]);
    let now = world.now;
    world.claims.handle_claims(key(1), NodeId(1), Vec::new(), now);
    std::iter::from_fn(|| world.claims.poll_output()).find_map(|output| match output {
        Output::Route { peer, from, broken, .. } if from == Some(key(1)) && peer == Some(key(2)) => {
            assert!(broken.is_none_or(|broken| broken == key(1)));
            Some(broken.is_some())
        }
        Output::Route { .. }
        | Output::Withhold { .. }
        | Output::Probe { .. }
        | Output::Keep { .. }
        | Output::Watch { .. } => None,
    })
}

#[test]
fn connections_break_where_either_node_held_them_and_else_go_on() {
    let routed = claim("10.8.0.0/24");
    let masqueraded = Claim { masquerade: true, ..routed };
    assert_eq!(breaks(claim(ADDRESS), claim(ADDRESS)), Some(true));
    assert_eq!(breaks(routed, routed), Some(false));
    assert_eq!(breaks(masqueraded, routed), Some(true));
    assert_eq!(breaks(routed, masqueraded), Some(true));
    assert_eq!(breaks(masqueraded, masqueraded), Some(true));
    let mut world = World::new(&[claim(ADDRESS), claim("10.9.0.0/31")]);
    let now = world.now;
    world.claims.handle_claims(key(1), NodeId(1), vec![claim("10.9.0.0/31")], now);
    let outputs: Vec<Output> = std::iter::from_fn(|| world.claims.poll_output()).collect();
    assert!(
        !outputs.iter().any(|output| matches!(output, Output::Route { broken: Some(_), .. })),
        "{outputs:?}"
    );
}

#[test]
fn nothing_breaks_where_nothing_was_switched() {
    let mut world = World::new(&[claim(ADDRESS)]);
    let now = world.now;
    let told = Claim { priority: 7, ..claim(ADDRESS) };
    world.claims.handle_claims(key(1), NodeId(1), vec![told], now);
    world.claims.handle_claims(key(1), NodeId(1), Vec::new(), now);
    world.claims.handle_claims(key(1), NodeId(1), vec![told], now);
    let outputs: Vec<Output> = std::iter::from_fn(|| world.claims.poll_output()).collect();
    assert_eq!(outputs.iter().filter(|output| matches!(output, Output::Route { .. })).count(), 2);
    assert!(
        !outputs.iter().any(|output| matches!(output, Output::Route { broken: Some(_), .. })),
        "{outputs:?}"
    );
}

#[test]
fn connections_wait_while_nobody_serves_and_break_when_it_is_another_who_does_first() {
    for (restored, expected) in [(1, vec![]), (2, vec![key(1)])] {
        let mut world = World::new(&[claim(ADDRESS), claim(ADDRESS)]);
        world.run(Duration::from_secs(3), Some(prefix(ADDRESS)));
        world.node(2).hears = false;
        world.withdraw(2, true);
        world.withdraw(1, true);
        assert_eq!(world.claims.active(&prefix(ADDRESS)), None);
        world.withdraw(restored, false);
        world.node(2).hears = true;
        world.run(Duration::from_secs(3), Some(prefix(ADDRESS)));
        assert_eq!(world.claims.active(&prefix(ADDRESS)), Some(key(restored)));
        assert_eq!(world.broken, expected);
    }
}
