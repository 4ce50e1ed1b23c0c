//! What is measured and how it is said: medians, percentiles, memory and CPU of a process.

use std::time::Duration;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::peers::Who;

/// Open files that are asked for, which only root gets where the system's limit is lower.
const DESCRIPTORS: u64 = 65_536;

/// The middle one of `values`.
pub fn median(mut values: Vec<f64>) -> f64 {
    percentile(&mut values, 50.0)
}

/// The value below which `percent` of `values` lie. Sorts them. NaN when there are none.
pub fn percentile(values: &mut [f64], percent: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let index = (percent / 100.0 * last as f64).round() as usize;
    values.get(index).copied().unwrap_or(f64::NAN)
}

/// Resident memory of a process in octets, from /proc.
pub fn resident(pid: u32) -> anyhow::Result<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = statm.split(' ').nth(1).unwrap_or_default().parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// User and system time of a process so far, all its threads, to a hundredth of a second; and that of its
/// children that have ended.
fn times(pid: u32) -> anyhow::Result<[Duration; 2]> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command's name may hold spaces; the fields are counted from behind its bracket.
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
    let per_second = rustix::param::clock_ticks_per_second();
    let time = |user, system| {
        Duration::from_secs_f64((ticks(user) + ticks(system)) as f64 / per_second as f64)
    };
    Ok([time(11, 12), time(13, 14)])
}

/// User and system time of a process and every process below it, those that have ended included: Postfix'
/// and Postgres' processes come and go.
pub fn cpu_of_tree(root: u32) -> anyhow::Result<Duration> {
    Ok(tree(root).into_iter().filter_map(|pid| times(pid).ok()).flatten().sum())
}

/// The most memory that was resident at once since [`forget_peak`], in octets.
pub fn peak(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes * 1024)
}

/// Begins [`peak`] anew.
pub fn forget_peak(pid: u32) -> anyhow::Result<()> {
    Ok(std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// Resident memory of a process and every process below it.
pub fn resident_of_tree(root: u32) -> u64 {
    tree(root).into_iter().filter_map(|pid| resident(pid).ok()).sum()
}

fn tree(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        tree.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    tree
}

/// What was measured of each, run by run.
pub struct Results<const N: usize>(Vec<(Who, Vec<[f64; N]>)>);

impl<const N: usize> Default for Results<N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<const N: usize> Results<N> {
    /// Takes in another run.
    pub fn add(&mut self, who: Who, values: [f64; N]) {
        match self.0.iter_mut().find(|(other, _)| *other == who) {
            Some((_, runs)) => runs.push(values),
            None => self.0.push((who, vec![values])),
        }
    }

    /// Takes in other runs.
    pub fn extend(&mut self, other: Self) {
        for (who, runs) in other.0 {
            runs.into_iter().for_each(|values| self.add(who, values));
        }
    }

    /// Prints the medians under `heads`, and how often the first one's the others' are.
    pub fn print(&self, heads: [&str; N]) {
        let columns: String = heads.iter().map(|head| format!("{head:>26}")).collect();
        println!("{:16}{columns}", "");
        let mut first: Option<[f64; N]> = None;
        for (who, runs) in &self.0 {
            let medians: [f64; N] =
                std::array::from_fn(|index| median(runs.iter().map(|run| run[index]).collect()));
            let columns: String = medians
                .iter()
                .enumerate()
                .map(|(index, value)| match first {
                    None => format!("{value:>26.1}"),
                    Some(first) => {
                        let times = format!("({:.2}×)", value / first[index]);
                        format!("{value:>17.1} {times:>8}")
                    }
                })
                .collect();
            first = first.or(Some(medians));
            println!("{who:16}{columns}");
        }
    }
}

/// Sessions need a descriptor on each side, here as in a proxy. What is started later has the same limit.
pub fn raise_descriptor_limit() {
    let old = getrlimit(Resource::Nofile);
    let most = old.maximum.map_or(DESCRIPTORS, |maximum| maximum.max(DESCRIPTORS));
    let wish = Rlimit { current: Some(most), maximum: Some(most) };
    if setrlimit(Resource::Nofile, wish).is_err() {
        let allowed = Rlimit { current: old.maximum, maximum: old.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, allowed) {
            println!("cannot raise the limit of open files: {error}");
        }
    }
}

/// Sessions that this process can be both ends of, at most `wanted`.
pub fn affordable_sessions(wanted: usize) -> usize {
    /// What else is open.
    const OTHERS: u64 = 500;
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS);
    usize::try_from(limit.saturating_sub(OTHERS) / 2).map_or(wanted, |most| most.min(wanted))
}

/// The machine in one line.
pub fn machine() -> String {
    let read = |path: &str, key: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .find(|line| line.starts_with(key))
            .and_then(|line| line.split(':').nth(1).map(|v| v.trim().to_owned()))
            .unwrap_or_else(|| "?".into())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let profile =
        if cfg!(debug_assertions) { "DEBUG BUILD, not comparable" } else { "release build" };
    format!(
        "machine: {} cores, {}, {}, Linux {}; {profile}",
        cores,
        read("/proc/cpuinfo", "model name"),
        read("/proc/meminfo", "MemTotal"),
        rustix::system::uname().release().to_string_lossy(),
    )
}
