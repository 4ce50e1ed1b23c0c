//! What is measured and how it is said: medians, percentiles, memory and CPU of a process.

use std::time::Duration;

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

/// User and system time of a process so far, all its threads, to a hundredth of a second.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command's name may hold spaces; the fields are counted from behind its bracket.
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64((ticks(11) + ticks(12)) as f64 / per_second as f64))
}

/// User and system time of a process and every process below it.
pub fn cpu_of_tree(root: u32) -> anyhow::Result<Duration> {
    Ok(tree(root).into_iter().filter_map(|pid| cpu(pid).ok()).sum())
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
