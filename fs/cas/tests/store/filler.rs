//! Filling a near store from a scripted source, in paused time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use distbuild_cas::{
    Ahead, Answers, DiskStore, FetchError, Filler, FillerConfig, Source, StoreError, Want,
};
use distbuild_proto::Digest;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, advance};

use crate::{digest, open};

/// Delivers what it has when it is let go.
struct Scripted {
    has: HashMap<Digest, Vec<u8>>,
    /// The blobs of each call, in the order of the calls.
    calls: Mutex<Vec<Vec<Digest>>>,
    /// One permit lets one call go on.
    gate: Semaphore,
    /// One permit brings one blob that somebody else fetches.
    elsewhere: Semaphore,
    answer: fn(Digest) -> Answer,
}

enum Answer {
    Deliver,
    Lie,
    Fail(FetchError),
    Hang,
    Panic,
    Elsewhere,
}

impl Source for Scripted {
    type Hint = u64;

    fn group(&self, hint: &u64) -> u64 {
        *hint
    }

    async fn fetch(&self, wants: Vec<Want<u64>>, store: &DiskStore, answers: Answers) {
        self.calls.lock().push(wants.iter().map(|want| want.digest).collect());
        self.gate.acquire().await.unwrap().forget();
        let elsewhere = |digest: &Digest| matches!((self.answer)(*digest), Answer::Elsewhere);
        let wanted = wants.iter().map(|want| &want.digest);
        wanted.filter(|digest| elsewhere(digest)).for_each(|digest| answers.waits(digest));
        for want in wants {
            let digest = want.digest;
            let outcome = match (self.answer)(digest) {
                Answer::Deliver => match self.has.get(&digest) {
                    Some(data) => store
                        .insert(&digest, data, want.executable)
                        .map_err(|error| FetchError::Store { digest, source: Arc::new(error) }),
                    None => Err(FetchError::NotFound(digest)),
                },
                Answer::Lie => Ok(()),
                Answer::Fail(error) => Err(error),
                Answer::Hang => std::future::pending().await,
                Answer::Panic => panic!("as scripted"),
                Answer::Elsewhere => {
                    self.elsewhere.acquire().await.unwrap().forget();
                    store
                        .insert(&digest, &self.has[&digest], want.executable)
                        .map_err(|error| FetchError::Store { digest, source: Arc::new(error) })
                }
            };
            answers.answer(&digest, outcome);
        }
    }
}

struct Scene {
    _root: tempfile::TempDir,
    source: Arc<Scripted>,
    filler: Filler<Arc<Scripted>>,
}

/// Small blobs are those up to 100 bytes; a batch holds 10 blobs or 100 bytes.
fn scene(blobs: &[Vec<u8>], open_gates: usize, answer: fn(Digest) -> Answer) -> Scene {
    let root = tempfile::tempdir().unwrap();
    let has = blobs.iter().map(|data| (digest(data), data.clone())).collect();
    let source = Arc::new(Scripted {
        has,
        calls: Mutex::default(),
        gate: Semaphore::new(open_gates),
        elsewhere: Semaphore::new(0),
        answer,
    });
    let config = FillerConfig {
        small_calls: 2,
        large_calls: 1,
        batch_blobs: 10,
        batch_bytes: 100,
        max_queued: 20,
        ahead_calls: 1,
        ahead_bytes: 40,
        ..FillerConfig::default()
    };
    let filler = Filler::new(open(root.path()), source.clone(), config);
    Scene { _root: root, source, filler }
}

fn want(data: &[u8]) -> Want<u64> {
    Want { digest: digest(data), executable: false, hint: 1 }
}

fn blobs(count: u8, size: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| vec![number; size]).collect()
}

impl Scene {
    /// Asks for blobs in the background; returns when all have been asked for.
    async fn ask(&self, blobs: &[Vec<u8>]) -> Vec<tokio::task::JoinHandle<Result<(), FetchError>>> {
        self.ask_for(1, blobs).await
    }

    async fn ask_for(
        &self,
        group: u64,
        blobs: &[Vec<u8>],
    ) -> Vec<tokio::task::JoinHandle<Result<(), FetchError>>> {
        let asked = blobs
            .iter()
            .map(|data| {
                let (filler, want) = (self.filler.clone(), Want { hint: group, ..want(data) });
                tokio::spawn(async move { filler.ensure(want).await })
            })
            .collect();
        settle().await;
        asked
    }

    fn ask_ahead(&self, blobs: &[Vec<u8>]) -> Vec<Ahead> {
        self.filler.fetch_ahead(blobs.iter().map(|data| want(data)).collect())
    }

    fn batches(&self) -> Vec<usize> {
        self.source.calls.lock().iter().map(Vec::len).collect()
    }
}

/// Lets every task run until it waits for something.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_is_there_is_not_fetched() {
    let data = blobs(1, 5);
    let scene = scene(&data, 1, |_| Answer::Deliver);
    scene.filler.ensure(want(&data[0])).await.unwrap();
    scene.filler.ensure(want(&data[0])).await.unwrap();
    scene.filler.ensure(want(b"")).await.unwrap();
    assert_eq!(scene.batches(), [1]);
    assert_eq!(scene.filler.store().read(&digest(&data[0])).unwrap(), data[0]);
}

#[tokio::test(start_paused = true)]
async fn waiters_of_one_blob_share_one_fetch_and_one_leaving_takes_nothing_from_the_others() {
    let data = blobs(1, 5);
    let scene = scene(&data, 0, |_| Answer::Deliver);
    let mut asked = scene.ask(&[data[0].clone(), data[0].clone(), data[0].clone()]).await;
    // The first began the fetch.
    asked.remove(0).abort();
    settle().await;
    scene.source.gate.add_permits(1);
    for waiter in asked {
        waiter.await.unwrap().unwrap();
    }
    assert_eq!(scene.batches(), [1]);
    assert_eq!(scene.filler.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn misses_go_at_once_while_few_calls_are_under_way_and_together_after_that() {
    let data = blobs(15, 5);
    let scene = scene(&data, 0, |_| Answer::Deliver);
    let asked = scene.ask(&data).await;
    assert_eq!(scene.batches(), [1, 1]);
    scene.source.gate.add_permits(1);
    settle().await;
    assert_eq!(scene.batches(), [1, 1, 10]);
    scene.source.gate.add_permits(10);
    for waiter in asked {
        waiter.await.unwrap().unwrap();
    }
    assert_eq!(scene.batches(), [1, 1, 10, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_bounded_in_bytes_and_a_large_blob_goes_alone_in_a_lane_of_its_own() {
    let (small, large) = (blobs(6, 40), blobs(2, 101));
    let all = [large.clone(), small].concat();
    let scene = scene(&all, 0, |_| Answer::Deliver);
    let asked = scene.ask(&all).await;
    // One large one, and two small ones that it does not hold up.
    assert_eq!(scene.batches(), [1, 1, 1]);
    scene.source.gate.add_permits(100);
    for waiter in asked {
        waiter.await.unwrap().unwrap();
    }
    let mut batches = scene.batches();
    batches.sort_unstable();
    assert_eq!(batches, [1, 1, 1, 1, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_any_more_is_not_fetched() {
    let data = blobs(4, 5);
    let scene = scene(&data, 0, |_| Answer::Deliver);
    let asked = scene.ask(&data).await;
    asked[2].abort();
    settle().await;
    scene.source.gate.add_permits(100);
    settle().await;
    assert_eq!(scene.source.calls.lock()[2], [digest(&data[3])]);
    assert!(!scene.filler.store().contains(&digest(&data[2])));
    // It can be wanted again.
    scene.filler.ensure(want(&data[2])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_large_blob_that_nobody_waits_for_any_more_is_left_half_way() {
    let large = blobs(2, 101);
    let scene = scene(&large, 0, |_| Answer::Deliver);
    let waiting = scene.ask(&large[..1]).await;
    let joined = scene.ask(&large[..1]).await;
    waiting.iter().for_each(|waiter| waiter.abort());
    settle().await;
    assert_eq!((scene.batches(), scene.filler.in_flight()), (vec![1], 1));
    joined.iter().for_each(|waiter| waiter.abort());
    settle().await;
    assert_eq!(scene.filler.in_flight(), 0);
    // Its place in the lane is free, and it can be asked for anew.
    let again = scene.ask(&[large[1].clone(), large[0].clone()]).await;
    scene.source.gate.add_permits(2);
    for waiter in again {
        waiter.await.unwrap().unwrap();
    }
    assert_eq!(scene.batches(), [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn every_waiter_gets_the_error_and_the_next_one_tries_again() {
    fn answer(digest: Digest) -> Answer {
        let source = Arc::new(StoreError::Missing(digest));
        Answer::Fail(FetchError::Store { digest, source })
    }
    let data = blobs(1, 5);
    let scene = scene(&data, 0, answer);
    let asked = scene.ask(&[data[0].clone(), data[0].clone()]).await;
    scene.source.gate.add_permits(2);
    for waiter in asked {
        assert!(matches!(waiter.await.unwrap(), Err(FetchError::Store { .. })));
    }
    assert!(scene.filler.ensure(want(&data[0])).await.is_err());
    assert_eq!(scene.batches(), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn one_missing_blob_fails_alone_in_its_batch() {
    let data = blobs(5, 5);
    let scene = scene(&data[..4], 0, |_| Answer::Deliver);
    let asked = scene.ask(&data).await;
    scene.source.gate.add_permits(100);
    let mut answers = Vec::new();
    for waiter in asked {
        answers.push(waiter.await.unwrap().is_ok());
    }
    assert_eq!(answers, [true, true, true, true, false]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_is_left_at_the_deadline_and_the_lane_goes_on() {
    let data = blobs(2, 5);
    let scene = scene(&data, 9, |_| Answer::Hang);
    let start = Instant::now();
    let asked = scene.ask(&data).await;
    let third = scene.ask(&[vec![9; 5]]).await;
    for waiter in asked {
        assert!(matches!(waiter.await.unwrap(), Err(FetchError::TimedOut { .. })));
    }
    assert_eq!(start.elapsed(), Duration::from_secs(30));
    for waiter in third {
        assert!(waiter.await.unwrap().is_err());
    }
    assert_eq!(start.elapsed(), Duration::from_secs(60));
    advance(Duration::from_secs(1)).await;
    assert_eq!(scene.filler.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_is_not_in_the_store_is_an_error() {
    let data = blobs(1, 5);
    let scene = scene(&data, 1, |_| Answer::Lie);
    let error = scene.filler.ensure(want(&data[0])).await.unwrap_err();
    assert!(matches!(error, FetchError::NotDelivered(_)));
}

#[tokio::test(start_paused = true)]
async fn wrong_bytes_do_not_enter_the_store() {
    let data = blobs(1, 5);
    let mut scene = scene(&data, 1, |_| Answer::Deliver);
    let wrong = HashMap::from([(digest(&data[0]), b"wrong".to_vec())]);
    let source = Arc::new(Scripted {
        has: wrong,
        calls: Mutex::default(),
        gate: Semaphore::new(1),
        elsewhere: Semaphore::new(0),
        answer: |_| Answer::Deliver,
    });
    scene.filler = Filler::new(scene.filler.store().clone(), source, FillerConfig::default());
    let error = scene.filler.ensure(want(&data[0])).await.unwrap_err();
    let FetchError::Store { source, .. } = error else { panic!("{error}") };
    assert!(matches!(*source, StoreError::Mismatch { .. }));
    assert!(!scene.filler.store().contains(&digest(&data[0])));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_panics_answers_its_waiters_and_frees_its_place() {
    let data = blobs(6, 5);
    let scene = scene(&data, 100, |_| Answer::Panic);
    for waiter in scene.ask(&data).await {
        assert!(matches!(waiter.await.unwrap(), Err(FetchError::Abandoned(_))));
    }
    assert_eq!(scene.filler.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let data = blobs(25, 5);
    let scene = scene(&data, 0, |_| Answer::Deliver);
    let mut asked = scene.ask(&data[..21]).await;
    // Two are under way, eighteen wait; what is left is for others.
    let last = asked.remove(20).await.unwrap();
    assert!(matches!(last, Err(FetchError::Overloaded(18))));
    for group in [2, 3] {
        asked.extend(scene.ask_for(group, &data[20 + group as usize..][..1]).await);
    }
    let last = scene.ask_for(4, &data[24..]).await.remove(0).await.unwrap();
    assert!(matches!(last, Err(FetchError::Overloaded(20))));
    scene.source.gate.add_permits(100);
    for waiter in asked {
        waiter.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn one_miss_of_an_action_goes_with_the_next_call_whatever_another_action_misses() {
    let data = blobs(16, 5);
    let scene = scene(&data, 0, |_| Answer::Deliver);
    let mut asked = scene.ask(&data[..15]).await;
    asked.extend(scene.ask_for(2, &data[15..]).await);
    scene.source.gate.add_permits(1);
    settle().await;
    let calls = scene.source.calls.lock().clone();
    assert_eq!(calls.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 10]);
    assert_eq!(calls[2][..3], [&data[2], &data[15], &data[3]].map(|data| digest(data)));
    scene.source.gate.add_permits(10);
    for waiter in asked {
        waiter.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn each_blob_is_answered_when_it_has_come_and_not_at_the_end_of_its_call() {
    let data = blobs(3, 5);
    let scene = scene(&data, 0, |digest| match digest {
        slow if slow == crate::digest(&[2; 5]) => Answer::Hang,
        _ => Answer::Deliver,
    });
    // Both calls are taken, so that three blobs share the next one.
    let begun = scene.ask(&blobs(5, 5)[3..]).await;
    let mut asked = scene.ask(&data).await;
    scene.source.gate.add_permits(3);
    let slow = asked.pop().unwrap();
    for waiter in asked {
        waiter.await.unwrap().unwrap();
    }
    assert_eq!(scene.batches(), [1, 1, 3]);
    assert!(!slow.is_finished());
    assert_eq!(scene.filler.in_flight(), 1);
    slow.abort();
    drop(begun);
}

#[tokio::test(start_paused = true)]
async fn blobs_that_somebody_else_fetches_hold_up_nobody_and_count_as_queued() {
    let data = blobs(40, 5);
    let waits = |digest| match (0..20).any(|number| crate::digest(&[number; 5]) == digest) {
        true => Answer::Elsewhere,
        false => Answer::Deliver,
    };
    let scene = scene(&data, 100, waits);
    // Far more than the two calls that may be under way at once.
    let parked = scene.ask(&data[..17]).await;
    assert_eq!(scene.source.calls.lock().concat().len(), 17);
    for data in &data[20..] {
        scene.filler.ensure(Want { hint: 2, ..want(data) }).await.unwrap();
    }
    assert_eq!(scene.filler.in_flight(), 17);
    let more = scene.ask(&data[17..20]).await;
    let refused = scene.ask(&[vec![77; 5]]).await.remove(0).await.unwrap();
    assert!(matches!(refused, Err(FetchError::Overloaded(20))));
    scene.source.elsewhere.add_permits(20);
    for waiter in parked.into_iter().chain(more) {
        waiter.await.unwrap().unwrap();
    }
    assert_eq!(scene.filler.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_fetched_ahead_takes_no_call_from_what_is_waited_for() {
    let data = blobs(40, 5);
    let scene = scene(&data, 0, |_| Answer::Deliver);
    let mut ahead = scene.ask_ahead(&data[..30]);
    assert_eq!(ahead.len(), 20, "the queue is bounded");
    settle().await;
    assert_eq!(scene.batches(), [8], "one small call");
    let asked = scene.ask(&data[30..]).await;
    assert_eq!(scene.batches(), [8, 1, 1], "both calls of small blobs are free");
    scene.source.gate.add_permits(100);
    for waiter in asked {
        waiter.await.unwrap().unwrap();
    }
    for blob in &mut ahead {
        assert!(blob.landed().await);
        assert!(scene.filler.store().contains(&blob.digest()));
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_to_be_waited_for_leaves_the_queue_of_what_is_fetched_ahead() {
    let data = blobs(17, 5);
    let scene = scene(&data, 0, |_| Answer::Deliver);
    let mut ahead = scene.ask_ahead(&data);
    settle().await;
    let under_way = data.iter().filter(|data| scene.filler.is_under_way(&digest(data))).count();
    assert_eq!(under_way, 8, "the others wait");
    let asked = scene.ask(&data[16..]).await;
    assert_eq!(scene.batches(), [8, 1]);
    scene.source.gate.add_permits(100);
    for waiter in asked {
        waiter.await.unwrap().unwrap();
    }
    for blob in &mut ahead {
        assert!(blob.landed().await);
    }
    assert_eq!(scene.source.calls.lock().concat().len(), 17, "each was fetched once");
}

#[tokio::test(start_paused = true)]
async fn what_is_there_or_on_its_way_is_not_fetched_ahead() {
    let data = blobs(3, 5);
    let scene = scene(&data, 1, |_| Answer::Deliver);
    scene.filler.ensure(want(&data[0])).await.unwrap();
    let asked = scene.ask(&data[1..2]).await;
    let ahead = scene.ask_ahead(&data);
    assert_eq!(ahead.iter().map(Ahead::digest).collect::<Vec<_>>(), [digest(&data[2])]);
    scene.source.gate.add_permits(2);
    for waiter in asked {
        waiter.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_wanted_ahead_any_more_is_not_begun() {
    let data = blobs(20, 5);
    let scene = scene(&data, 0, |_| Answer::Deliver);
    drop(scene.ask_ahead(&data));
    settle().await;
    scene.source.gate.add_permits(100);
    settle().await;
    assert_eq!(scene.batches(), [8], "the call that was under way");
    assert_eq!(scene.filler.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failure_ahead_is_none_for_whoever_comes_to_wait() {
    let data = blobs(1, 5);
    let scene = scene(&[], 0, |_| Answer::Deliver);
    let mut ahead = scene.ask_ahead(&data);
    let asked = scene.ask(&data).await;
    assert_eq!(scene.batches(), [1], "it is on its way");
    scene.source.gate.add_permits(1);
    settle().await;
    assert!(!ahead[0].landed().await && !ahead[0].has_landed());
    assert_eq!(scene.batches(), [1, 1], "asked for again, by somebody who waits");
    scene.source.gate.add_permits(1);
    for waiter in asked {
        assert!(matches!(waiter.await.unwrap(), Err(FetchError::NotFound(_))));
    }
}

#[test]
fn a_runtime_that_shuts_down_with_blobs_on_their_way_does_not_hang() {
    let data = blobs(9, 5);
    let scene = scene(&data, 0, |_| Answer::Deliver);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { drop(scene.ask(&data).await) });
    drop(runtime);
    assert_eq!(scene.filler.in_flight(), 0);
}
