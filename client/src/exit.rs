//! How a command ends: the documented exit codes, and failures that know theirs.

use std::fmt::Display;
use std::process::ExitCode;

/// An exit code of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit(u8);

impl Exit {
    /// Done.
    pub(crate) const DONE: Self = Self(0);
    /// A job failed or timed out.
    pub(crate) const JOB_FAILED: Self = Self(1);
    /// Wrong usage, or an invalid graph.
    pub(crate) const USAGE: Self = Self(2);
    /// Something that is nobody's command: network, disk, a lost worker, a changed source file.
    pub(crate) const INFRASTRUCTURE: Self = Self(3);
    /// No worker can run a job.
    pub(crate) const NO_WORKER: Self = Self(4);
    /// Cancelled, by whomever.
    pub(crate) const CANCELLED: Self = Self(130);

    /// What counts most, first; a job's failure is told only if nothing else is wrong.
    const ORDER: [Self; 4] =
        [Self::CANCELLED, Self::INFRASTRUCTURE, Self::NO_WORKER, Self::JOB_FAILED];

    /// The one to end with where several apply.
    pub(crate) fn of_all(exits: impl IntoIterator<Item = Self>) -> Self {
        let place = |exit: &Self| Self::ORDER.iter().position(|known| known == exit);
        let worst = exits.into_iter().filter_map(|exit| place(&exit)).min();
        worst.map_or(Self::DONE, |place| Self::ORDER[place])
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.0)
    }
}

/// Why a command ends without having done its work.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// The exit code that it asks for.
    pub(crate) exit: Exit,
    message: String,
}

impl Failure {
    pub(crate) fn usage(message: impl Display) -> Self {
        Self { exit: Exit::USAGE, message: message.to_string() }
    }

    pub(crate) fn infrastructure(message: impl Display) -> Self {
        Self { exit: Exit::INFRASTRUCTURE, message: message.to_string() }
    }

    pub(crate) fn no_worker(message: impl Display) -> Self {
        Self { exit: Exit::NO_WORKER, message: message.to_string() }
    }

    pub(crate) fn cancelled() -> Self {
        Self { exit: Exit::CANCELLED, message: "cancelled".to_owned() }
    }

    /// A call that the coordinator refused.
    pub(crate) fn of_status(status: &tonic::Status) -> Self {
        match status.code() {
            tonic::Code::InvalidArgument => Self::usage(status.message()),
            tonic::Code::FailedPrecondition => Self::no_worker(status.message()),
            tonic::Code::Unavailable => Self::infrastructure(format!(
                "the coordinator is not reached: {}",
                status.message()
            )),
            _ => Self::infrastructure(format!("the coordinator refused: {}", status.message())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_several_codes_apply_the_documented_order_decides() {
        let all = [Exit::JOB_FAILED, Exit::NO_WORKER, Exit::INFRASTRUCTURE, Exit::CANCELLED];
        assert_eq!(Exit::of_all(all), Exit::CANCELLED);
        assert_eq!(Exit::of_all(all[..3].iter().copied()), Exit::INFRASTRUCTURE);
        assert_eq!(Exit::of_all(all[..2].iter().copied()), Exit::NO_WORKER);
        assert_eq!(Exit::of_all(all[..1].iter().copied()), Exit::JOB_FAILED);
        assert_eq!(Exit::of_all([Exit::DONE]), Exit::DONE);
        assert_eq!(Exit::of_all([]), Exit::DONE);
    }

    #[test]
    fn a_refused_call_ends_with_the_code_of_its_status() {
        let exit = |status| Failure::of_status(&status).exit;
        assert_eq!(exit(tonic::Status::invalid_argument("x")), Exit::USAGE);
        assert_eq!(exit(tonic::Status::failed_precondition("x")), Exit::NO_WORKER);
        assert_eq!(exit(tonic::Status::unavailable("x")), Exit::INFRASTRUCTURE);
    }
}
