//! What goes wrong, as the API wants it said: codes, and details that clients act on.

use std::fmt::Display;
use std::time::Duration;

use bazel_remote_apis::google::rpc;
use distbuild_cas::StoreError;
use distbuild_proto::Digest;
use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, PreconditionViolation, StatusExt};

use super::instance::InstanceError;
use super::resource_name::{ResourceNameError, blob_name};
use crate::state::StateError;

/// Missing blobs that one status names. Clients upload what is named and ask again; beyond this the status would not
/// fit the messages that they accept.
pub(crate) const MAX_VIOLATIONS: usize = 16_384;

/// When to try again what failed for a reason that passes.
const RETRY: Duration = Duration::from_secs(1);

/// A request that cannot be right, whatever the server holds.
pub(crate) fn invalid(problem: impl Display) -> Status {
    Status::invalid_argument(problem.to_string())
}

/// Blobs that an action needs and that are not here: the client uploads them and asks again.
pub(crate) fn missing_blobs<'a>(digests: impl IntoIterator<Item = &'a Digest>) -> Status {
    let violations: Vec<_> = digests
        .into_iter()
        .take(MAX_VIOLATIONS)
        .map(|digest| PreconditionViolation::new("MISSING", blob_name(digest), ""))
        .collect();
    let text = match &violations[..] {
        [one] => format!("{} is missing, upload it and try again", one.subject),
        all => format!("{} blobs are missing, upload them and try again", all.len()),
    };
    let details = ErrorDetails::with_precondition_failure(violations);
    Status::with_error_details(Code::FailedPrecondition, text, details)
}

/// An error that passes; when it is worth another try.
pub(crate) fn retry_after(code: Code, text: impl Into<String>, delay: Duration) -> Status {
    let details = ErrorDetails::with_retry_info(Some(delay));
    Status::with_error_details(code, text, details)
}

/// What a status says, with its details, as a message that holds it.
pub(crate) fn to_rpc(status: &Status) -> rpc::Status {
    let detailed = (!status.details().is_empty()).then(|| rpc::Status::decode(status.details()));
    detailed.and_then(Result::ok).unwrap_or_else(|| rpc::Status {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// All is well, in a message that holds a status for each of its items.
pub(crate) fn ok() -> rpc::Status {
    rpc::Status::default()
}

/// What a store could not do. What is the machine's fault is logged here.
pub(crate) fn of_store(error: &StoreError) -> Status {
    let text = error.to_string();
    match error {
        StoreError::Missing(digest) | StoreError::Damaged(digest) => not_found(digest),
        StoreError::Mismatch { .. }
        | StoreError::TooLong { .. }
        | StoreError::TooLarge { .. }
        | StoreError::NotDirectory { .. } => Status::invalid_argument(text),
        StoreError::Full(_) => Status::resource_exhausted(text),
        StoreError::NotRegular(_)
        | StoreError::Foreign { .. }
        | StoreError::Thread
        | StoreError::Io { .. } => {
            let source = std::error::Error::source(error).map(ToString::to_string);
            tracing::error!(%error, source, "the blob store failed");
            Status::internal(text)
        }
    }
}

/// A blob that is not here.
pub(crate) fn not_found(digest: &Digest) -> Status {
    Status::not_found(format!("{} is not here", blob_name(digest)))
}

/// A thread that worked for a call ended abnormally.
pub(crate) fn of_thread(error: &tokio::task::JoinError) -> Status {
    tracing::error!(%error, "a call of the remote execution API failed");
    Status::internal("the call failed")
}

/// The state database failed.
pub(crate) fn of_state(error: &StateError) -> Status {
    tracing::error!(%error, "the state database failed");
    retry_after(Code::Unavailable, error.to_string(), RETRY)
}

impl From<InstanceError> for Status {
    fn from(error: InstanceError) -> Self {
        invalid(error)
    }
}

impl From<ResourceNameError> for Status {
    fn from(error: ResourceNameError) -> Self {
        invalid(error)
    }
}

#[cfg(test)]
mod tests {
    use distbuild_cas::FullReason;
    use distbuild_proto::DigestFunction;

    use super::*;

    #[test]
    fn missing_blobs_are_named_all_as_violations_of_a_precondition() {
        let one = DigestFunction::Blake3.digest(b"1");
        let other = DigestFunction::Sha256.digest(b"2");
        let status = missing_blobs([&one, &other]);
        assert_eq!(status.code(), Code::FailedPrecondition);
        let violations = status.get_details_precondition_failure().unwrap().violations;
        let found: Vec<_> = violations.iter().map(|v| (&v.r#type[..], v.subject.clone())).collect();
        assert_eq!(
            found,
            [
                ("MISSING", format!("blobs/blake3/{}/1", one.hex())),
                ("MISSING", format!("blobs/{}/1", other.hex())),
            ]
        );
    }

    #[test]
    fn a_status_keeps_its_details_inside_a_message() {
        let status = retry_after(Code::Unavailable, "later", Duration::from_secs(3));
        let rpc = to_rpc(&status);
        assert_eq!((rpc.code, &rpc.message[..]), (Code::Unavailable as i32, "later"));
        assert_eq!(rpc.details[0].type_url, "type.googleapis.com/google.rpc.RetryInfo");
        let plain = to_rpc(&Status::not_found("gone"));
        assert_eq!((plain.code, &plain.message[..]), (Code::NotFound as i32, "gone"));
        assert!(plain.details.is_empty());
    }

    #[test]
    fn errors_of_the_store_have_the_codes_that_the_api_documents() {
        let digest = DigestFunction::Sha1.digest(b"x");
        let code = |error| of_store(&error).code();
        assert_eq!(code(StoreError::Missing(digest)), Code::NotFound);
        assert_eq!(code(StoreError::TooLong { expected: digest }), Code::InvalidArgument);
        assert_eq!(code(StoreError::Full(FullReason::Disk)), Code::ResourceExhausted);
        assert_eq!(code(StoreError::Thread), Code::Internal);
    }
}
