//! The named fields of a JSON object, as the field's JSON libraries read one: unknown fields are ignored, and of a repeated
//! one the last counts.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// The fields, unparsed; absent ones are `None`, and `null` is there.
///
/// # Errors
/// The text is no JSON object.
pub fn fields<'a, const N: usize>(
    text: &'a str,
    names: [&str; N],
) -> Result<[Option<&'a RawValue>; N], serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    let fields = Fields(&names).deserialize(&mut json)?;
    json.end()?;
    Ok(fields)
}

/// Leaves the values' types to the caller, who can say more about a wrong one.
struct Fields<'n, const N: usize>(&'n [&'n str; N]);

impl<'de, const N: usize> DeserializeSeed<'de> for Fields<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Fields<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = [None; N];
        while let Some(index) = map.next_key_seed(Key(self.0))? {
            match index {
                Some(index) => fields[index] = Some(map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(fields)
    }
}

/// The index of a field's name among those wanted.
struct Key<'n>(&'n [&'n str]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|wanted| *wanted == name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_repeated_fields_counts_and_null_is_there() {
        let text = r#"{"a":1,"b":{"a":2},"a":null,"\u0062":3,"c":[]}"#;
        let [a, b, d] = fields(text, ["a", "b", "d"]).unwrap();
        assert_eq!((a.map(RawValue::get), b.map(RawValue::get), d.map(RawValue::get)), (Some("null"), Some("3"), None));
        for text in ["", "[1]", "7", "null", r#"{"a":1} x"#, r#"{"a"}"#] {
            assert!(fields(text, ["a"]).is_err(), "{text}");
        }
    }
}
