//! Stores lost: a member wiped, a majority gone, a disk full.

use super::{AWAY, PATIENCE, Scene};
use crate::deployment::number_of;
use crate::disk::empty;
use crate::harness::{BROADCAST_KEY, http, public};
use crate::proc::{self, eventually};
use serde_json::json;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Carrick's `publish_timeout`, and a little for the way.
const REFUSAL: Duration = Duration::from_secs(12);
/// How long a disk stays full.
const FULL: Duration = Duration::from_secs(4);

impl Scene<'_> {
    /// Deletes the store of a follower and lets it come back. Then, when all copies are there again, the leader dies:
    /// what the new copy holds must be right.
    pub(super) fn wipe_member(&mut self) -> Result<(), String> {
        let name = self.follower();
        let number = number_of(&name);
        let deleted = match &mut self.deployment.nats {
            Some(nats) => {
                nats.members[number].kill();
                // Else it would vote with an empty memory.
                self.deployment.jetstream().remove_peer(&name)?;
                self.proof.note(format!("{name} removed from the cluster"));
                let nats = self.deployment.nats.as_mut().ok_or("no nats-server of its own")?;
                let deleted = nats.members[number].wipe();
                nats.members[number].start();
                deleted
            }
            None => {
                self.deployment.kill_nodes(&[number]);
                let deleted = empty(&self.deployment.embedded_store(number))?;
                self.deployment.start_nodes(&[number]);
                deleted
            }
        };
        self.proof.require(deleted > 0, format!("{deleted} files of {name} deleted"));
        let begun = Instant::now();
        self.deployment.jetstream().wait_whole();
        let seconds = begun.elapsed().as_secs_f64();
        self.proof.require(true, format!("all copies up to date again after {seconds:.1} s"));
        match self.deployment.nats {
            Some(_) => self.kill_leader(),
            // Its nats-server alone would be back at once, and be elected again.
            None => self.kill_leading_node(),
        }
    }

    /// Two of three servers die at once: publishers are refused in time, clients stay, and all heals.
    pub(super) fn lose_quorum(&mut self) -> Result<(), String> {
        let leader = number_of(&self.deployment.jetstream().wait_leader(None));
        let (victims, witness) = match &self.deployment.nats {
            Some(_) => ([leader, (leader + 1) % 3], 0),
            None => ([leader, (leader + 1) % 3], (leader + 2) % 3),
        };
        let server = &self.deployment.nodes()[witness];
        let mut client = self.deployment.block_on(server.subscriber("quorum"));
        match &mut self.deployment.nats {
            Some(nats) => victims.iter().for_each(|victim| nats.members[*victim].kill()),
            None => self.deployment.kill_nodes(&victims),
        }
        let address = self.deployment.nodes()[witness].broadcast_address();
        let body = json!({"stream": "quorum", "data": "1", "meta": {"id": "during"}}).to_string();
        let key = format!("Bearer {BROADCAST_KEY}");
        let begun = Instant::now();
        let headers = [("Authorization", key.as_str())];
        let post = http::try_request(address, "POST", "/_broadcast", &headers, body.as_bytes());
        let answer = self.deployment.block_on(post).map_err(|error| format!("no answer to a publisher: {error}"))?;
        let (status, took) = (answer.status, begun.elapsed());
        let refused = status == 503 && took < REFUSAL;
        self.proof.require(refused, format!("a publisher got {status} after {:.1} s", took.as_secs_f64()));
        let alive = self.deployment.block_on(async {
            let pong = tokio::time::timeout(Duration::from_secs(5), client.barrier());
            pong.await.is_ok()
        });
        self.proof.require(alive, "a connected client stayed");
        match &mut self.deployment.nats {
            Some(nats) => victims.iter().for_each(|victim| nats.members[*victim].start()),
            None => self.deployment.start_nodes(&victims),
        }
        let pids: Vec<String> = victims.iter().map(|victim| format!("n{victim}")).collect();
        self.proof.note(format!("{} killed and started again", pids.join(" and ")));
        self.deployment.jetstream().wait_whole();
        self.require_election();
        let server = &self.deployment.nodes()[witness];
        // The same key: stored once, whether the refused attempt was stored or not.
        let again = async || {
            let answer = server.post(&body).await;
            assert!(matches!(answer.status, 201 | 503), "{answer:?}");
            (answer.status == 201).then(|| answer.json())
        };
        let (answer, mut frame) = self.deployment.block_on(async {
            let answer = crate::harness::eventually("the publication is accepted", again).await;
            (answer, client.next().await)
        });
        // What was refused may be stored all the same, and be too old before a node can read it: that is told.
        if begun.elapsed() > self.deployment.life() && frame["type"] == "reject_history" {
            self.proof.note("and was then told that it missed what had expired");
            if answer["duplicate"] == true {
                return Ok(());
            }
            // What was stored only now has not expired.
            frame = self.deployment.block_on(client.next());
        }
        let message = json!({"identifier": public("quorum"), "message": 1});
        let is_it = ["identifier", "message"].iter().all(|part| frame[part] == message[part]);
        assert!(is_it && frame["type"].is_null(), "{message} expected: {frame}");
        self.proof.require(true, "and then got its message");
        Ok(())
    }

    /// The disk of the log's leader is full for a while.
    pub(super) fn fill_disk(&mut self) -> Result<(), String> {
        let leader = self.deployment.jetstream().wait_leader(None);
        let number = number_of(&leader);
        let pid = self.deployment.nats_pid(&leader);
        let filled = self.deployment.disk(number).fill();
        let room = self.deployment.disk(number).room();
        self.proof.require(room == 0, format!("disk of {leader} filled with {} MiB, {room} bytes left", filled >> 20));
        let noticed = || {
            let said = match &self.deployment.nats {
                Some(nats) => nats.members[number].said("no space left on device"),
                None => self.deployment.nodes()[number].log().contains("the disk of the store is full"),
            };
            said.then_some(())
        };
        let noticed = eventually(PATIENCE, "nats-server meets the full disk", noticed);
        self.proof.require(noticed.is_ok(), "nats-server met it");
        sleep(FULL);
        self.deployment.disk(number).make_room();
        match &mut self.deployment.nats {
            // What an operator does: JetStream stays off until then.
            Some(nats) => {
                nats.members[number].stop();
                sleep(AWAY / 4);
                nats.members[number].start();
            }
            None => {
                let replaced = || (!proc::is_alive(pid) && self.deployment.find_nats(&leader).is_some()).then_some(());
                eventually(PATIENCE, "a new nats-server once there is room", replaced)?;
            }
        }
        self.deployment.jetstream().wait_whole();
        self.pulse.wait(PATIENCE)?;
        let pause = self.pause().as_secs_f64();
        let stood_still = self.deployment.is_cluster() || pause > FULL.as_secs_f64() / 2.0;
        self.proof.require(stood_still, format!("publishing paused for {pause:.1} s"));
        Ok(())
    }
}
