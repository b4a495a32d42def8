//! What runs looked at: the names of it, out of the coordinator's records. What was there, the model reads from the disk
//! itself.

use std::collections::BTreeMap;

use bytes::Bytes;
use distbuild_proto::transport::{self, MAX_MESSAGE_BYTES};
use distbuild_proto::wire::builds_client::BuildsClient;
use distbuild_proto::{AccessRecord, Observed, ObservedDirectory, wire};
use tonic::transport::Channel;

use super::compare::{End, Ends};

/// One way of looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// At a name.
    Name,
    /// At the names in a directory.
    Listing,
    /// At all that is below a directory.
    Everything,
}

/// Where somebody looked inside an input root, and how.
pub type Look = (String, Way);

/// A coordinator that gives its records out.
#[derive(Debug)]
pub struct Records {
    runtime: tokio::runtime::Runtime,
    builds: BuildsClient<Channel>,
}

impl Records {
    /// Of the coordinator at this address.
    ///
    /// # Panics
    /// It is not reached.
    pub fn of(address: &str) -> Self {
        // A thread of its own answers the coordinator's pings between calls.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        let address = address.parse().expect("a farm has an address");
        let channel = runtime.block_on(transport::connect(&address)).expect("the farm listens");
        let builds = BuildsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self { runtime, builds }
    }

    /// Of the jobs that ran and succeeded: where their commands looked.
    ///
    /// # Panics
    /// The coordinator does not answer, or has no whole record of a run.
    pub fn of_runs(&mut self, ends: &Ends) -> BTreeMap<String, Vec<Look>> {
        let ran: BTreeMap<&String, &End> =
            ends.iter().filter(|(_, end)| end.how == "executed").collect();
        let mut found = BTreeMap::new();
        for (name, end) in ran {
            let record = self.record(&end.action);
            found.insert(name.clone(), looks(&record));
        }
        found
    }

    /// The record of the run of an action, as it is kept.
    ///
    /// # Panics
    /// The coordinator does not answer, or has no record of the run.
    pub fn encoded(&mut self, action: &str) -> Bytes {
        let digits = action.as_bytes().chunks(2);
        let key: Vec<u8> = digits
            .map(|pair| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).expect("a key"))
            .collect();
        let request = wire::ListAccessRecordsRequest { action_keys: vec![key.into()] };
        let run = self.runtime.block_on(async {
            let stream = self.builds.list_access_records(request).await;
            stream.expect("the coordinator answers").into_inner().message().await
        });
        run.expect("the coordinator answers").expect("a run has a record").record
    }

    fn record(&mut self, action: &str) -> AccessRecord {
        let record = self.encoded(action);
        let record = AccessRecord::decode(&record).expect("a record can be read");
        assert!(record.is_complete(), "a compile looks at less than a record holds");
        record
    }
}

fn looks(record: &AccessRecord) -> Vec<Look> {
    let mut looks = Vec::new();
    gather("", record.root(), &mut looks);
    looks
}

fn gather(at: &str, directory: &ObservedDirectory, looks: &mut Vec<Look>) {
    if directory.everything {
        return looks.push((at.to_owned(), Way::Everything));
    }
    if directory.listing.is_some() {
        looks.push((at.to_owned(), Way::Listing));
    }
    for (name, observed) in &directory.names {
        let name = String::from_utf8_lossy(name.as_bytes());
        let path = if at.is_empty() { name.into_owned() } else { format!("{at}/{name}") };
        looks.push((path.clone(), Way::Name));
        if let Observed::Directory(child) = observed {
            gather(&path, child, looks);
        }
    }
}
