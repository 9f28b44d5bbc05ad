//! The store's times: RFC 3339 in UTC, as NATS writes them, to and from Unix time.

const NANOS: u64 = 1_000_000_000;

/// Nanoseconds since 1970 of `2026-11-24T12:00:55.994378881Z`; `None` if it is not of that form.
pub(super) fn parse(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut clock = clock.splitn(3, ':').map(str::parse::<u64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u64 = format!("{fraction:0<9}").parse().ok()?;
    let days = u64::try_from(days_from_civil(year, month, day)).ok()?;
    days.checked_mul(86_400)?.checked_add(hour * 3600 + minute * 60 + second)?.checked_mul(NANOS)?.checked_add(nanos)
}

/// `2026-11-24T12:00:55Z` of seconds since 1970, up to the year 9999.
pub(super) fn format(seconds: u64) -> String {
    let seconds = seconds.min(253_402_300_799);
    let (year, month, day) = civil_from_days((seconds / 86_400) as i64);
    let second = seconds % 86_400;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Days since 1970 in the proleptic Gregorian calendar (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times() {
        assert_eq!(parse("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(parse("2026-11-24T12:00:55.994378881Z"), Some(1_795_521_655_994_378_881));
        assert_eq!(parse("2026-11-24T12:00:55.9943Z"), Some(1_795_521_655_994_300_000));
        assert_eq!(format(1_795_521_655), "2026-11-24T12:00:55Z");
        assert_eq!(format(951_782_400), "2000-02-29T00:00:00Z");
        for bad in ["", "2026-11-24", "2026-11-24T12:00:55", "x-11-24T12:00:55Z", "2026-11-24T12:00:55.1234567890Z"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn there_and_back(seconds in 0u64..18_446_744_073) {
            prop_assert_eq!(parse(&format(seconds)), Some(seconds * NANOS));
        }
    }
}
