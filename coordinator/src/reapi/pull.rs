//! Streams whose items are made on threads that may wait for the disk, one ahead of the client.
//!
//! No thread waits for a client: however many are slow, the disk serves the others.

use std::pin::Pin;

use futures::{Stream, stream};
use tokio::task::{JoinHandle, spawn_blocking};
use tonic::Status;

use super::status;

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

type Made<T, S> = JoinHandle<Result<Option<(T, S)>, Status>>;

/// The items that `next` makes, until it makes none or fails.
pub(crate) fn pull<T, S, F>(state: S, next: F) -> Answers<T>
where
    T: Send + 'static,
    S: Send + 'static,
    F: Fn(&mut S) -> Result<Option<T>, Status> + Clone + Send + Sync + 'static,
{
    let make = move |mut state: S| -> Made<T, S> {
        let next = next.clone();
        spawn_blocking(move || Ok(next(&mut state)?.map(|item| (item, state))))
    };
    let first = Some(make(state));
    Box::pin(stream::unfold((first, make), |(made, make)| async {
        match made?.await {
            Ok(Ok(Some((item, state)))) => {
                let ahead = Some(make(state));
                Some((Ok(item), (ahead, make)))
            }
            Ok(Ok(None)) => None,
            Ok(Err(error)) => Some((Err(error), (None, make))),
            Err(error) => Some((Err(status::of_thread(&error)), (None, make))),
        }
    }))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn items_come_in_order_until_there_are_none_or_one_fails() {
        let count = |to: u32, fail_at: u32| {
            pull(0, move |next: &mut u32| {
                *next += 1;
                match *next {
                    failed if failed == fail_at => Err(Status::internal("failed")),
                    item => Ok((item <= to).then_some(item)),
                }
            })
            .map(|item| item.map_err(|error| error.code()))
            .collect::<Vec<_>>()
        };
        assert_eq!(count(3, 9).await, [Ok(1), Ok(2), Ok(3)]);
        assert_eq!(count(3, 2).await, [Ok(1), Err(tonic::Code::Internal)]);
    }
}
