//! What values look like: how each kind of option is read, shown and explained.

use super::Secret;
use std::path::PathBuf;
use std::time::Duration;

/// A value as it was given.
#[derive(Clone, Copy, Debug)]
pub enum Raw<'a> {
    /// From the command line or the environment.
    Text(&'a str),
    /// From the file.
    Toml(&'a toml::Value),
}

impl<'a> Raw<'a> {
    /// The value as text, if it is text.
    pub fn text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Toml(value) => value.as_str(),
        }
    }
}

/// What an empty environment variable means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmptyEnv {
    /// As if the variable did not exist.
    Unset,
    /// The given text stands for it.
    Means(&'static str),
}

/// A value as a file would have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// TOML literal.
    pub literal: String,
    /// Empty, false, 0 or none: printed commented out where it is also the default.
    pub off: bool,
    /// Holds a secret.
    pub secret: bool,
}

impl Shown {
    fn plain(value: impl Into<toml::Value>, off: bool) -> Self {
        Self { literal: value.into().to_string(), off, secret: false }
    }

    /// The literal, or stars in place of a secret.
    pub fn masked(&self) -> &str {
        if self.secret && !self.off { "\"***\"" } else { &self.literal }
    }
}

/// One kind of value. `Err` says what is allowed, as the end of "… is not allowed; allowed: …".
pub trait Kind<T> {
    /// The option may stand without a value on the command line.
    const SWITCH: bool = false;
    /// The value must not be shown.
    const SECRET: bool = false;

    fn read(&self, raw: Raw<'_>) -> Result<T, String>;
    fn show(&self, value: &T) -> Shown;
    /// Name of the value in the help text.
    fn value_name(&self) -> &'static str;
    /// A closed set's values, for the help text.
    fn values(&self) -> Vec<&'static str> {
        Vec::new()
    }
    fn empty_env(&self) -> EmptyEnv {
        EmptyEnv::Unset
    }
}

/// Text with a rule.
pub struct Text {
    pub check: fn(&str) -> bool,
    pub allowed: &'static str,
    pub name: &'static str,
}

impl Kind<String> for Text {
    fn read(&self, raw: Raw<'_>) -> Result<String, String> {
        raw.text().filter(|text| (self.check)(text)).map(str::to_owned).ok_or_else(|| self.allowed.to_owned())
    }
    fn show(&self, value: &String) -> Shown {
        Shown { secret: has_credentials(value), ..Shown::plain(value.as_str(), value.is_empty()) }
    }
    fn value_name(&self) -> &'static str {
        self.name
    }
    fn empty_env(&self) -> EmptyEnv {
        EmptyEnv::Means("")
    }
}

/// Text that may be absent; empty means absent.
impl Kind<Option<String>> for Text {
    fn read(&self, raw: Raw<'_>) -> Result<Option<String>, String> {
        match raw.text() {
            Some("") => Ok(None),
            _ => Kind::<String>::read(self, raw).map(Some),
        }
    }
    fn show(&self, value: &Option<String>) -> Shown {
        let text = value.as_deref().unwrap_or_default();
        Shown { secret: has_credentials(text), ..Shown::plain(text, value.is_none()) }
    }
    fn value_name(&self) -> &'static str {
        self.name
    }
    fn empty_env(&self) -> EmptyEnv {
        EmptyEnv::Means("")
    }
}

/// A secret; empty means absent, `none` is kept until the configuration is resolved.
pub struct Hidden;

impl Kind<Option<Secret>> for Hidden {
    const SECRET: bool = true;

    fn read(&self, raw: Raw<'_>) -> Result<Option<Secret>, String> {
        let text = raw.text().ok_or("text, or `none`")?;
        Ok((!text.is_empty()).then(|| Secret::new(text)))
    }
    fn show(&self, value: &Option<Secret>) -> Shown {
        let text = value.as_ref().map_or("", Secret::expose);
        // "none" is no secret, and a reader wants to see it.
        Shown { literal: toml::Value::from(text).to_string(), off: value.is_none(), secret: text != "none" }
    }
    fn value_name(&self) -> &'static str {
        "SECRET"
    }
    fn empty_env(&self) -> EmptyEnv {
        EmptyEnv::Means("")
    }
}

/// A file or directory.
pub struct Location;

impl Kind<Option<PathBuf>> for Location {
    fn read(&self, raw: Raw<'_>) -> Result<Option<PathBuf>, String> {
        let text = raw.text().ok_or("a path")?;
        Ok((!text.is_empty()).then(|| PathBuf::from(text)))
    }
    fn show(&self, value: &Option<PathBuf>) -> Shown {
        let text = value.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        Shown::plain(text, value.is_none())
    }
    fn value_name(&self) -> &'static str {
        "PATH"
    }
    fn empty_env(&self) -> EmptyEnv {
        EmptyEnv::Means("")
    }
}

impl Kind<PathBuf> for Location {
    fn read(&self, raw: Raw<'_>) -> Result<PathBuf, String> {
        Kind::<Option<PathBuf>>::read(self, raw)?.ok_or_else(|| "a path".to_owned())
    }
    fn show(&self, value: &PathBuf) -> Shown {
        Shown::plain(value.to_string_lossy().into_owned(), false)
    }
    fn value_name(&self) -> &'static str {
        "PATH"
    }
}

/// Yes or no.
pub struct Switch;

impl Kind<bool> for Switch {
    const SWITCH: bool = true;

    fn read(&self, raw: Raw<'_>) -> Result<bool, String> {
        match raw {
            Raw::Toml(toml::Value::Boolean(value)) => Ok(*value),
            Raw::Text("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Raw::Text("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            _ => Err("true or false".to_owned()),
        }
    }
    fn show(&self, value: &bool) -> Shown {
        Shown::plain(*value, !value)
    }
    fn value_name(&self) -> &'static str {
        "BOOL"
    }
    fn empty_env(&self) -> EmptyEnv {
        EmptyEnv::Means("false")
    }
}

/// A whole number from `min` to `max`.
pub struct Int {
    pub min: u64,
    pub max: u64,
    pub name: &'static str,
}

impl Int {
    fn allowed(&self) -> String {
        format!("a whole number from {} to {}", self.min, self.max)
    }

    fn number(&self, raw: Raw<'_>) -> Result<u64, String> {
        let number = match raw {
            Raw::Text(text) => parse_integer(text),
            Raw::Toml(value) => value.as_integer().and_then(|n| u64::try_from(n).ok()),
        };
        number.filter(|n| (self.min..=self.max).contains(n)).ok_or_else(|| self.allowed())
    }
}

/// Decimal, or with a prefix: `0x…`, `0b…`, `0o…` and the older `0…` for octal.
fn parse_integer(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.as_bytes() {
        [b'0', b'x', ..] => (&lower[2..], 16),
        [b'0', b'b', ..] => (&lower[2..], 2),
        [b'0', b'o', ..] => (&lower[2..], 8),
        [b'0', _, ..] => (&lower[1..], 8),
        _ => (&lower[..], 10),
    };
    // `from_str_radix` would take a sign, also after a prefix.
    digits.bytes().all(|b| b.is_ascii_alphanumeric()).then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

macro_rules! int_kind {
    ($($type:ty),*) => {$(
        impl Kind<$type> for Int {
            fn read(&self, raw: Raw<'_>) -> Result<$type, String> {
                <$type>::try_from(self.number(raw)?).map_err(|_| self.allowed())
            }
            fn show(&self, value: &$type) -> Shown {
                Shown { literal: value.to_string(), off: *value == 0, secret: false }
            }
            fn value_name(&self) -> &'static str {
                self.name
            }
        }
    )*};
}
int_kind!(u16, u32, u64, usize);

/// A length of time: a plain number counts seconds; `250ms`, `10s`, `5m`, `2h` name their unit.
pub struct Span {
    pub min: Duration,
    pub max: Duration,
}

/// Longest time accepted anywhere: ten years, far from any overflow of clocks.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Any time, also none.
pub const ANY_TIME: Span = Span { min: Duration::ZERO, max: LONGEST };
/// At least a tenth of a second: shorter would mean a busy loop, or is refused by the store.
pub const SOME_TIME: Span = Span { min: Duration::from_millis(100), max: LONGEST };

impl Kind<Duration> for Span {
    fn read(&self, raw: Raw<'_>) -> Result<Duration, String> {
        let time = match raw {
            Raw::Toml(toml::Value::Integer(seconds)) => u64::try_from(*seconds).ok().map(Duration::from_secs),
            _ => raw.text().and_then(parse_time),
        };
        time.filter(|time| (self.min..=self.max).contains(time)).ok_or_else(|| {
            let (min, max) = (show_time(self.min), show_time(self.max));
            format!("seconds, or a number with its unit (`250ms`, `10s`, `5m`, `2h`), at least {min}, at most {max}")
        })
    }
    fn show(&self, value: &Duration) -> Shown {
        let off = value.is_zero();
        match value.subsec_nanos() {
            0 => Shown { literal: value.as_secs().to_string(), off, secret: false },
            _ => Shown::plain(show_time(*value), off),
        }
    }
    fn value_name(&self) -> &'static str {
        "SECONDS"
    }
}

/// A length of time whose plain number counts milliseconds, as the field has it for calls to the application.
pub struct Millis;

impl Kind<Duration> for Millis {
    fn read(&self, raw: Raw<'_>) -> Result<Duration, String> {
        let plain = match raw {
            Raw::Toml(toml::Value::Integer(number)) => u64::try_from(*number).ok(),
            _ => raw.text().and_then(|text| text.parse().ok()),
        };
        let time = plain.map(Duration::from_millis).or_else(|| raw.text().and_then(parse_time));
        time.filter(|time| *time <= LONGEST).ok_or_else(|| {
            format!("milliseconds, or a number with its unit (`250ms`, `10s`), at most {}", show_time(LONGEST))
        })
    }
    fn show(&self, value: &Duration) -> Shown {
        Shown { literal: value.as_millis().to_string(), off: value.is_zero(), secret: false }
    }
    fn value_name(&self) -> &'static str {
        "MILLISECONDS"
    }
}

/// `10`, `250ms`, `10s`, `5m`, `2h`.
pub fn parse_time(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let seconds = match &text[digits..] {
        "ms" => return Some(Duration::from_millis(number)),
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// The inverse of [`parse_time`], always with a unit.
pub fn show_time(time: Duration) -> String {
    if time.subsec_nanos() == 0 { format!("{}s", time.as_secs()) } else { format!("{}ms", time.as_millis()) }
}

/// Several values: comma-separated, or an array in the file. Items are trimmed, empty ones dropped.
pub struct List {
    pub check: fn(&str) -> bool,
    pub allowed: &'static str,
    /// Fewest items.
    pub min: usize,
    /// The file's usual form is an array, else comma-separated text.
    pub array: bool,
    pub name: &'static str,
}

/// The items of a list in either form.
pub fn items(raw: Raw<'_>, separator: char) -> Option<Vec<String>> {
    let split =
        |text: &str| text.split(separator).map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect();
    match raw {
        Raw::Toml(toml::Value::Array(values)) => values
            .iter()
            .map(|value| value.as_str().map(|text| text.trim().to_owned()))
            .filter(|item| item.as_deref() != Some(""))
            .collect(),
        _ => raw.text().map(split),
    }
}

impl Kind<Vec<String>> for List {
    fn read(&self, raw: Raw<'_>) -> Result<Vec<String>, String> {
        items(raw, ',')
            .filter(|items| items.len() >= self.min && items.iter().all(|item| (self.check)(item)))
            .ok_or_else(|| self.allowed.to_owned())
    }
    fn show(&self, value: &Vec<String>) -> Shown {
        let mut shown = if self.array {
            Shown::plain(value.clone(), value.is_empty())
        } else {
            Shown::plain(value.join(","), value.is_empty())
        };
        shown.secret = value.iter().any(|item| has_credentials(item));
        shown
    }
    fn value_name(&self) -> &'static str {
        self.name
    }
    fn empty_env(&self) -> EmptyEnv {
        EmptyEnv::Means("")
    }
}

/// An address with a user part may hold a password, with or without a scheme before it.
pub fn has_credentials(text: &str) -> bool {
    text.contains('@')
}

/// Whether a value that was refused may be repeated in the message: it may be a URL with a mistake in any part.
pub fn may_be_shown(text: &str) -> bool {
    let has_query = text.contains("://") && text.contains('?');
    !text.contains('@') && !has_query
}

/// One of a closed set. A value may have several names, the first is the one shown.
pub struct Choice<T: 'static> {
    pub values: &'static [(&'static str, T)],
    /// Names that the field knows and this version does not implement yet.
    pub later: &'static [&'static str],
}

impl<T: Copy + PartialEq> Choice<T> {
    fn find(&self, name: &str) -> Result<T, String> {
        match self.values.iter().find(|(known, _)| *known == name) {
            Some((_, value)) => Ok(*value),
            None if self.later.contains(&name) => Err(format!("{} ({name} is not available yet)", self.list())),
            None => Err(self.list()),
        }
    }

    fn list(&self) -> String {
        self.names().collect::<Vec<_>>().join(", ")
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.values.iter().map(|(name, _)| *name).filter(|name| !name.is_empty())
    }

    fn name(&self, value: T) -> &'static str {
        self.values.iter().find(|(_, known)| *known == value).map_or("", |(name, _)| name)
    }
}

impl<T: Copy + PartialEq> Kind<T> for Choice<T> {
    fn read(&self, raw: Raw<'_>) -> Result<T, String> {
        raw.text().ok_or_else(|| self.list()).and_then(|name| self.find(name))
    }
    fn show(&self, value: &T) -> Shown {
        let name = self.name(*value);
        Shown::plain(name, name.is_empty() || name == "none")
    }
    fn value_name(&self) -> &'static str {
        "NAME"
    }
    fn values(&self) -> Vec<&'static str> {
        self.names().collect()
    }
    fn empty_env(&self) -> EmptyEnv {
        EmptyEnv::Unset
    }
}

/// Several of a closed set.
pub struct Choices<T: 'static>(pub Choice<T>);

impl<T: Copy + PartialEq> Kind<Vec<T>> for Choices<T> {
    fn read(&self, raw: Raw<'_>) -> Result<Vec<T>, String> {
        items(raw, ',')
            .ok_or_else(|| self.0.list())
            .and_then(|names| names.iter().map(|name| self.0.find(name)).collect())
    }
    fn show(&self, value: &Vec<T>) -> Shown {
        let names: Vec<_> = value.iter().map(|value| self.0.name(*value).to_owned()).collect();
        let off = names.is_empty();
        Shown::plain(names, off)
    }
    fn value_name(&self) -> &'static str {
        "NAMES"
    }
    fn values(&self) -> Vec<&'static str> {
        self.0.names().collect()
    }
    fn empty_env(&self) -> EmptyEnv {
        EmptyEnv::Means("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_take_the_prefixes_of_the_environment() {
        for (text, number) in [("8080", 8080), ("0x1F", 31), ("010", 8), ("0b11", 3), ("0o17", 15), ("0", 0)] {
            assert_eq!(parse_integer(text), Some(number), "{text}");
        }
        for text in ["", "-1", "+1", "0x", "0x+1", "1.5", "1_000", "8080 ", "09", "99999999999999999999"] {
            assert_eq!(parse_integer(text), None, "{text}");
        }
    }

    #[test]
    fn times_are_seconds_or_name_their_unit() {
        let ms = Duration::from_millis;
        for (text, time) in
            [("3", ms(3000)), ("250ms", ms(250)), ("10s", ms(10_000)), ("2m", ms(120_000)), ("1h", ms(3_600_000))]
        {
            assert_eq!(parse_time(text), Some(time), "{text}");
        }
        for text in ["", "s", "1.5", "-1", "5 s", "1d", "18446744073709551615h"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
        assert_eq!(ANY_TIME.show(&ms(250)).literal, "\"250ms\"");
        assert_eq!(ANY_TIME.show(&ms(5000)).literal, "5");
        let refused = ANY_TIME.read(Raw::Text("999999999999")).expect_err("ten years at most");
        assert!(refused.ends_with("at least 0s, at most 315360000s"), "{refused}");
        assert!(
            Millis.read(Raw::Text("999999999999999")).expect_err("ten years at most").ends_with("at most 315360000s")
        );
        assert!(SOME_TIME.read(Raw::Text("0")).is_err());
    }

    #[test]
    fn booleans_are_the_twelve_words_and_nothing_else() {
        for text in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(Switch.read(Raw::Text(text)), Ok(true));
        }
        for text in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(Switch.read(Raw::Text(text)), Ok(false));
        }
        for text in ["", "yes", "on", "tRUE", "2"] {
            assert!(Switch.read(Raw::Text(text)).is_err(), "{text}");
        }
        assert!(Switch.read(Raw::Toml(&toml::Value::from("true"))).is_err(), "a file has booleans of its own");
    }

    #[test]
    fn lists_are_trimmed_and_lose_empty_items() {
        assert_eq!(items(Raw::Text(" a, b ,,c,"), ',').unwrap(), ["a", "b", "c"]);
        assert_eq!(items(Raw::Toml(&toml::Value::from(vec!["a ", "", "b"])), ',').unwrap(), ["a", "b"]);
        assert_eq!(items(Raw::Toml(&toml::Value::from("a,b")), ',').unwrap(), ["a", "b"]);
        assert_eq!(items(Raw::Toml(&toml::Value::from(1)), ','), None);
        assert_eq!(items(Raw::Toml(&toml::Value::from(vec![1])), ','), None);
    }
}
