//! Worker pools: which sets of properties are known, and which one a selector gets.
//!
//! A pool is a set of equal properties, known once a worker with it has registered. A build picks one
//! toolchain a selector: objects of different compilers never meet in one build.

use std::collections::BTreeMap;

use distbuild_proto::graph::nearest;

/// Properties, by key.
pub(crate) type Properties = BTreeMap<String, String>;

/// The property by which workers name the tools that their jobs see.
pub(crate) const TOOLCHAIN: &str = "toolchain";

/// The property of workers that can give an action a writable input root: where the action sees it.
pub(crate) const INPUT_ROOT: &str = "input-root";

/// The known pools.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    /// Latest seen last, with the milli-cores that are online now.
    pools: Vec<(Properties, u64)>,
}

/// What a selector comes down to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selected {
    /// Workers with these properties: the selector's own and one toolchain.
    Pool(Properties),
    /// No pool is known yet at all.
    NoneKnown,
    /// Pools are known, and none matches; with what comes near.
    NoMatch(String),
}

impl Pools {
    /// Learns of a pool, or sees it again.
    pub(crate) fn see(&mut self, properties: Properties) {
        let online = match self.pools.iter().position(|(known, _)| *known == properties) {
            Some(at) => self.pools.remove(at).1,
            None => 0,
        };
        self.pools.push((properties, online));
    }

    /// Counts capacity that came online in a pool or, negative, left it.
    pub(crate) fn change_online(&mut self, properties: &Properties, milli_cores: i64) {
        if let Some((_, online)) = self.pools.iter_mut().find(|(known, _)| known == properties) {
            *online = online.saturating_add_signed(milli_cores);
        }
    }

    /// Resolves a selector: of the matching pools, the toolchain with most capacity online, and
    /// among equals the latest seen.
    pub(crate) fn select(&self, selector: &Properties) -> Selected {
        if self.pools.is_empty() {
            return Selected::NoneKnown;
        }
        let matching = |(properties, _): &&(Properties, u64)| {
            selector.iter().all(|(key, value)| properties.get(key) == Some(value))
        };
        let mut by_toolchain: BTreeMap<Option<&String>, (u64, usize)> = BTreeMap::new();
        for (at, pool) in self.pools.iter().enumerate().filter(|(_, pool)| matching(pool)) {
            let entry = by_toolchain.entry(pool.0.get(TOOLCHAIN)).or_default();
            entry.0 += pool.1;
            entry.1 = at;
        }
        let Some((toolchain, _)) = by_toolchain.into_iter().max_by_key(|(_, weight)| *weight)
        else {
            return Selected::NoMatch(self.near_matches(selector));
        };
        let mut properties = selector.clone();
        if let Some(toolchain) = toolchain {
            properties.insert(TOOLCHAIN.to_owned(), toolchain.clone());
        }
        Selected::Pool(properties)
    }

    /// Completes the selector of an action that writes into its input root and does not say where it wants to see
    /// it: at `usual`, if any matching worker offers that, so that equal actions see equal paths; else
    /// wherever one offers it.
    ///
    /// # Errors
    /// Workers are known, and none of them will do; with what comes near.
    pub(crate) fn with_input_root(
        &self,
        mut selector: Properties,
        usual: &str,
    ) -> Result<Properties, String> {
        if let Selected::NoMatch(hint) = self.select(&selector) {
            return Err(hint);
        }
        if self.pools.is_empty() || selector.contains_key(INPUT_ROOT) {
            return Ok(selector);
        }
        let matches = |properties: &&Properties| {
            selector.iter().all(|(key, value)| properties.get(key) == Some(value))
        };
        let matching = self.pools.iter().map(|(properties, _)| properties).filter(matches);
        let offered: std::collections::BTreeSet<&String> =
            matching.filter_map(|properties| properties.get(INPUT_ROOT)).collect();
        let place = offered.iter().find(|place| **place == usual).or(offered.first());
        let Some(place) = place.map(|place| (*place).clone()) else {
            return Err(format!(
                "no worker that offers its properties has {INPUT_ROOT:?}; `distbuild workers` says why"
            ));
        };
        selector.insert(INPUT_ROOT.to_owned(), place);
        Ok(selector)
    }

    fn near_matches(&self, selector: &Properties) -> String {
        let mut hints = Vec::new();
        for (key, value) in selector {
            let values: std::collections::BTreeSet<_> = self
                .pools
                .iter()
                .filter_map(|(properties, _)| properties.get(key))
                .map(String::as_str)
                .collect();
            if values.is_empty() {
                let keys: std::collections::BTreeSet<_> = self
                    .pools
                    .iter()
                    .flat_map(|(properties, _)| properties.keys())
                    .map(String::as_str)
                    .collect();
                let near = nearest(key, keys.iter().copied());
                hints.push(match near {
                    Some(near) => format!("no worker has a property {key:?}, nearest is {near:?}"),
                    None => format!("no worker has a property {key:?}"),
                });
            } else if !values.contains(value.as_str()) {
                let known: Vec<_> = values.into_iter().take(5).collect();
                hints.push(format!(
                    "no worker has {key}={value}, known values of {key}: {}",
                    known.join(", ")
                ));
            }
        }
        if hints.is_empty() {
            "each property is offered, but by no worker together".to_owned()
        } else {
            hints.join("; ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(pairs: &[(&str, &str)]) -> Properties {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn pools() -> Pools {
        let mut pools = Pools::default();
        pools.see(properties(&[("os", "linux"), ("toolchain", "old")]));
        pools.see(properties(&[("os", "linux"), ("toolchain", "new")]));
        pools
    }

    #[test]
    fn a_selector_gets_one_toolchain_that_with_most_capacity_online() {
        let mut pools = pools();
        let os = properties(&[("os", "linux")]);
        let toolchain = |selected| match selected {
            Selected::Pool(properties) => properties[TOOLCHAIN].clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(toolchain(pools.select(&os)), "new");
        pools.change_online(&properties(&[("os", "linux"), ("toolchain", "old")]), 4000);
        assert_eq!(toolchain(pools.select(&os)), "old");
    }

    #[test]
    fn a_selector_that_no_known_pool_matches_names_what_comes_near() {
        let pools = pools();
        let no_match = |pairs: &[(&str, &str)]| match pools.select(&properties(pairs)) {
            Selected::NoMatch(text) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            no_match(&[("os", "plan9")]),
            "no worker has os=plan9, known values of os: linux"
        );
        assert_eq!(
            no_match(&[("oss", "linux")]),
            "no worker has a property \"oss\", nearest is \"os\""
        );
    }

    #[test]
    fn an_action_that_writes_into_its_input_root_goes_where_that_is_possible() {
        let mut pools = pools();
        let os = properties(&[("os", "linux")]);
        let place = |pools: &Pools, selector: &Properties| {
            pools.with_input_root(selector.clone(), "/usual").map(|it| it[INPUT_ROOT].clone())
        };
        assert!(place(&pools, &os).unwrap_err().contains(INPUT_ROOT));
        pools.see(properties(&[("os", "linux"), (INPUT_ROOT, "/")]));
        assert_eq!(place(&pools, &os).unwrap(), "/");
        pools.see(properties(&[("os", "linux"), (INPUT_ROOT, "/usual")]));
        assert_eq!(place(&pools, &os).unwrap(), "/usual");
        assert_eq!(place(&pools, &properties(&[(INPUT_ROOT, "/")])).unwrap(), "/");
        assert!(place(&pools, &properties(&[("os", "plan9")])).unwrap_err().contains("plan9"));
        let none = Pools::default().with_input_root(os.clone(), "/usual");
        assert_eq!(none, Ok(os), "the first worker is waited for");
    }

    #[test]
    fn while_no_pool_is_known_a_selector_is_neither_matched_nor_refused() {
        assert_eq!(Pools::default().select(&properties(&[("gpu", "1")])), Selected::NoneKnown);
    }
}
