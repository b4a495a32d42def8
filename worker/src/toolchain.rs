//! What a worker calls its toolchain, and how it notices that this has become another.
//!
//! Unless the user has given the name, it is the fingerprint of what jobs see of the host. Hosts are
//! upgraded while workers run: the fingerprint is looked at again and again, and whoever holds the other end
//! of the channel learns when it differs. What a job did between the change and the look that finds it is
//! taken for the old toolchain's, so the time between two looks bounds what a change can spoil.

use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use crate::error::WorkerError;
use crate::sandbox::SpawnerConfig;
use crate::sandbox::fingerprint::Toolchain;

/// The platform property with the toolchain's name.
pub(crate) const TOOLCHAIN: &str = "toolchain";
/// File in the state directory with what the fingerprint was seen with.
const MEMO: &str = "toolchain";

/// Fingerprints what jobs under `spawner` see. Blocks for as long as a walk over that takes, if it has
/// changed since the last start.
///
/// # Errors
/// Something visible cannot be read.
pub(crate) fn find(mut spawner: SpawnerConfig, state: &Path) -> Result<Toolchain, WorkerError> {
    // They differ from run to run, and lie in the state directory, which is hidden anyway.
    spawner.sources.clear();
    Toolchain::open(&spawner, &state.join(MEMO))
        .map_err(|error| WorkerError::Fingerprint(error.into()))
}

/// Looks at the toolchain each time that `pause` has passed since the last look, and gives its fingerprint
/// to `name` when it is another. Ends when nobody listens.
pub(crate) async fn watch(mut toolchain: Toolchain, pause: Duration, name: watch::Sender<String>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = name.closed() => return,
        }
        let looking = tokio::task::spawn_blocking(move || {
            let changed = toolchain.recheck();
            (toolchain, changed)
        });
        // Fails only when the runtime ends.
        let Ok((looked_at, changed)) = looking.await else { return };
        toolchain = looked_at;
        match changed {
            Ok(true) => drop(name.send_replace(toolchain.fingerprint().hex.clone())),
            Ok(false) => {}
            // In the middle of an upgrade, perhaps: the next look will tell.
            Err(error) => tracing::warn!(%error, "failed to look at the toolchain again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_compiler_that_is_rewritten_in_place_gives_the_toolchain_another_name() {
        let directory = tempfile::tempdir().unwrap();
        let tools = directory.path().join("tools");
        fs::create_dir(&tools).unwrap();
        fs::write(tools.join("libcc.so"), "a compiler").unwrap();
        let mut config = SpawnerConfig::new(Vec::new(), None);
        config.etc.clear();
        config.directories = vec![tools.clone()];
        let toolchain = find(config, directory.path()).unwrap();
        let before = toolchain.fingerprint().hex.clone();
        let (sender, mut name) = watch::channel(before.clone());
        let watching = tokio::spawn(super::watch(toolchain, Duration::from_millis(1), sender));
        fs::write(tools.join("libcc.so"), "another compiler").unwrap();
        let noticed = name.wait_for(|name| *name != before);
        tokio::time::timeout(Duration::from_secs(30), noticed).await.unwrap().unwrap();
        drop(name);
        watching.await.unwrap();
    }
}
