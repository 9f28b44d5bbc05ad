use super::*;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn admit(door: &Door) -> Arc<Share> {
    door.admit(None).unwrap().share
}

fn from(door: &Door, address: IpAddr) -> Arc<Share> {
    door.admit(Some(address)).unwrap().share
}

#[test]
fn beyond_the_limit_there_is_the_reserve_and_then_nothing() {
    let door = Connections::new(ConnectionLimits { max: 1, reserve: 1, per_address: 0 }).door();
    let first = admit(&door);
    let second = admit(&door);
    assert!(!first.is_reserved() && second.is_reserved());
    assert!(second.work(), "nobody takes its place");
    assert_eq!(first.become_client(address("192.0.2.1")), Ok(()));
    assert_eq!(second.become_client(address("192.0.2.1")), Err(Refusal::Full));
    assert_eq!(door.admit(None).err(), Some(Refusal::Full));
    drop(first);
    assert!(!second.is_reserved(), "it moves where there is room");
    assert_eq!(second.become_client(address("192.0.2.1")), Ok(()));
    assert!(admit(&door).is_reserved());
}

#[test]
fn row_16_each_listener_has_a_reserve_of_its_own() {
    let connections = Connections::new(ConnectionLimits { max: 0, reserve: 1, per_address: 0 });
    let (public, own) = (connections.door(), connections.door());
    let first = admit(&public);
    assert!(first.work());
    assert_eq!(public.admit(None).err(), Some(Refusal::Full));
    let other = admit(&own);
    assert!(first.is_reserved() && other.is_reserved());
    drop((first, other));
    admit(&public);
}

/// Places as they are after this time.
fn later(connections: &Connections, door: usize, seconds: f64) -> Option<(Place, Option<Arc<Share>>)> {
    at(connections, door, Instant::now() + std::time::Duration::from_secs_f64(seconds))
}

fn at(connections: &Connections, door: usize, time: Instant) -> Option<(Place, Option<Arc<Share>>)> {
    connections.places().find(door, time)
}

#[tokio::test]
async fn row_16_who_has_waited_longest_gives_its_place_to_another() {
    let connections = Connections::new(ConnectionLimits { max: 4, reserve: 1, per_address: 0 });
    let door = connections.door();
    let [client, working, idle, silent] = [admit(&door), admit(&door), admit(&door), admit(&door)];
    client.become_client(address("192.0.2.1")).unwrap();
    assert!(working.begin(false) && idle.begin(false));
    assert!(idle.may_stay(), "its answer is on its way");
    idle.wait();
    let before = Instant::now();
    let reserved = admit(&door);
    assert!(reserved.is_reserved() && !reserved.may_stay());
    assert!(at(&connections, 0, before).is_none(), "a request may be on its way");
    let (place, other) = later(&connections, 0, 0.2).unwrap();
    assert!(place == Place::Reserved && Arc::ptr_eq(&other.unwrap(), &reserved), "in the reserve there is less time");
    // Of those two it was the second that waited longest.
    for longest in [&silent, &idle] {
        let (place, other) = later(&connections, 0, 6.0).unwrap();
        assert!(place == Place::Ordinary && Arc::ptr_eq(&other.unwrap(), longest));
        assert!(!longest.begin(false), "it is told when it goes on");
        longest.wait();
    }
    assert!(later(&connections, 0, 600.0).is_none(), "neither a client nor a running request is disturbed");
    working.wait();
    assert!(later(&connections, 0, 600.0).is_some());
    // A place that was lost is not given back.
    drop((working, idle, silent, reserved));
    assert!(later(&connections, 0, 600.0).is_none());
}

#[tokio::test]
async fn row_16_the_connection_that_lost_its_place_hears_of_it() {
    let connections = Connections::new(ConnectionLimits { max: 0, reserve: 1, per_address: 0 });
    let door = connections.door();
    let first = admit(&door);
    tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    let admitted = door.admit(None).unwrap();
    assert!(admitted.displaced);
    tokio::time::timeout(std::time::Duration::from_secs(20), first.displaced()).await.expect("it is told");
}

#[test]
fn row_16_an_address_keeps_no_more_idle_connections_than_clients_leave() {
    let connections = Connections::new(ConnectionLimits { per_address: 2, ..ConnectionLimits::NONE });
    let door = connections.door();
    let one = address("192.0.2.1");
    let idle: Vec<_> = (0..2).map(|_| from(&door, one)).collect();
    for publisher in &idle {
        assert!(publisher.begin(false) && publisher.may_stay());
    }
    let third = from(&door, one);
    assert!(third.begin(false) && !third.may_stay(), "it is answered and closed");
    // They keep no client out.
    let clients = [from(&door, one), from(&door, one)];
    for client in &clients {
        assert_eq!(client.become_client(one), Ok(()));
    }
    assert_eq!(door.admit(Some(one)).err(), Some(Refusal::Address));
    assert!(idle[0].begin(false) && !idle[0].may_stay());
    drop((clients, idle, third));
    assert!(connections.places().counts_nobody());
}

#[test]
fn an_address_has_its_clients_and_those_that_said_nothing_yet() {
    let connections = Connections::new(ConnectionLimits { per_address: 2, ..ConnectionLimits::NONE });
    let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
    let door = connections.door();
    let client = from(&door, one);
    assert_eq!(client.become_client(one), Ok(()), "it does not count twice");
    let publisher = from(&door, one);
    assert_eq!(door.admit(Some(one)).err(), Some(Refusal::Address));
    from(&door, other);
    publisher.begin(false);
    let second = from(&door, one);
    assert_eq!(publisher.become_client(one), Err(Refusal::Address));
    // Behind a proxy the address is known only then.
    let proxied = admit(&door);
    assert_eq!(proxied.become_client(one), Err(Refusal::Address));
    drop(client);
    assert_eq!(proxied.become_client(one), Ok(()));
    drop((publisher, second, proxied));
    assert!(connections.places().counts_nobody());
}

#[test]
fn an_ipv6_network_is_one_address() {
    let door = Connections::new(ConnectionLimits { per_address: 1, ..ConnectionLimits::NONE }).door();
    let _first = from(&door, address("2001:db8:1:2::1"));
    assert_eq!(door.admit(Some(address("2001:db8:1:2:ffff::1"))).err(), Some(Refusal::Address));
    let _other = from(&door, address("2001:db8:1:3::1"));
    let _v4 = from(&door, address("::ffff:192.0.2.1"));
    assert_eq!(door.admit(Some(address("192.0.2.1"))).err(), Some(Refusal::Address));
}
