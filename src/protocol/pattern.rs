//! Patterns over stream names: `*` stands for any text, also none and also one with `/`; `?` for exactly one character;
//! `\` takes the special meaning from the character behind it; everything else stands for itself. The whole name must
//! match, case and all.

use std::fmt;
use std::str::FromStr;

/// A pattern, ready to match. Compared and shown by its text.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    pieces: Vec<Piece>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// Any text, also none.
    Any,
    /// One character, whichever.
    One,
    Char(char),
}

/// Longest pattern in bytes.
const LONGEST: usize = 200;

/// Not a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    #[error("a pattern of 1 to {LONGEST} bytes")]
    Length,
    #[error("a pattern in which `\\` stands before `*`, `?` or `\\`")]
    Escape,
}

impl Pattern {
    /// Matches every name.
    pub fn everything() -> Self {
        Self { text: "*".into(), pieces: vec![Piece::Any] }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Takes time in proportion to the name's length, times the pattern's at worst. Allocates nothing.
    pub fn matches(&self, name: &str) -> bool {
        let pieces = &self.pieces;
        let (mut at, mut rest) = (0, name.chars());
        // Where the last `*` stands, and the text that it has not swallowed yet.
        let mut star: Option<(usize, std::str::Chars<'_>)> = None;
        loop {
            if pieces.get(at) == Some(&Piece::Any) {
                if at + 1 == pieces.len() {
                    return true;
                }
                star = Some((at, rest.clone()));
                at += 1;
                continue;
            }
            let next = rest.next();
            let fits = match (pieces.get(at), next) {
                (None, None) => return true,
                (Some(Piece::One), Some(_)) => true,
                (Some(Piece::Char(wanted)), Some(found)) => *wanted == found,
                _ => false,
            };
            if fits {
                at += 1;
                continue;
            }
            let Some((place, mut behind)) = star else { return false };
            if behind.next().is_none() {
                return false;
            }
            rest = behind.clone();
            star = Some((place, behind));
            at = place + 1;
        }
    }

    /// False only if no name can match both. (True says little: it compares what stands before the first wildcard.)
    pub fn may_overlap(&self, other: &Self) -> bool {
        let mut both = self.pieces.iter().zip(&other.pieces);
        let parted = both.find_map(|pair| match pair {
            (Piece::Any, _) | (_, Piece::Any) => Some(false),
            (Piece::Char(one), Piece::Char(two)) if one != two => Some(true),
            _ => None,
        });
        match parted {
            Some(parted) => !parted,
            None => {
                let rest = |pieces: &[Piece], from: usize| pieces[from..].iter().all(|piece| *piece == Piece::Any);
                let common = self.pieces.len().min(other.pieces.len());
                rest(&self.pieces, common) && rest(&other.pieces, common)
            }
        }
    }
}

impl FromStr for Pattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        if !(1..=LONGEST).contains(&text.len()) {
            return Err(BadPattern::Length);
        }
        let mut pieces = Vec::with_capacity(text.len());
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let piece = match c {
                '*' if pieces.last() == Some(&Piece::Any) => continue,
                '*' => Piece::Any,
                '?' => Piece::One,
                '\\' => match chars.next() {
                    Some(special @ ('*' | '?' | '\\')) => Piece::Char(special),
                    _ => return Err(BadPattern::Escape),
                },
                other => Piece::Char(other),
            };
            pieces.push(piece);
        }
        Ok(Self { text: text.to_owned(), pieces })
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn names_that_match_and_names_that_do_not() {
        for (text, yes, no) in [
            ("chat/*", &["chat/", "chat/1", "chat/1/typing", "chat/ä"][..], &["chat", "Chat/1", "xchat/1", ""][..]),
            ("*/typing", &["/typing", "chat/1/typing"], &["typing", "chat/1/typing/x"]),
            ("a*b*c", &["abc", "axxbxbxc", "abbcc"], &["ab", "acb", "abcx"]),
            ("room-?", &["room-1", "room-é"], &["room-", "room-12"]),
            ("*", &["", "anything"], &[]),
            ("exact", &["exact"], &["exac", "exactly"]),
            (r"a\*\?\\", &[r"a*?\"], &["axx", r"a\*\?\\"]),
            ("[a-b]{c,d}", &["[a-b]{c,d}"], &["a", "ac"]),
        ] {
            for name in yes {
                assert!(pattern(text).matches(name), "{text} {name}");
            }
            for name in no {
                assert!(!pattern(text).matches(name), "{text} {name}");
            }
        }
        assert!(Pattern::everything().matches("x"));
    }

    #[test]
    fn what_is_no_pattern() {
        assert_eq!("".parse::<Pattern>(), Err(BadPattern::Length));
        assert_eq!("x".repeat(201).parse::<Pattern>(), Err(BadPattern::Length));
        assert_eq!(r"a\".parse::<Pattern>(), Err(BadPattern::Escape));
        assert_eq!(r"a\b".parse::<Pattern>(), Err(BadPattern::Escape));
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_obvious_recursion(text in "[ab*?]{1,8}", name in "[ab]{0,10}") {
            fn slow(pieces: &[Piece], name: &[char]) -> bool {
                match (pieces, name) {
                    ([], []) => true,
                    ([Piece::Any, more @ ..], _) => (0..=name.len()).any(|n| slow(more, &name[n..])),
                    ([Piece::One, more @ ..], [_, rest @ ..]) => slow(more, rest),
                    ([Piece::Char(c), more @ ..], [d, rest @ ..]) => c == d && slow(more, rest),
                    _ => false,
                }
            }
            let pattern = pattern(&text);
            let chars: Vec<char> = name.chars().collect();
            prop_assert_eq!(pattern.matches(&name), slow(&pattern.pieces, &chars));
        }

        #[test]
        fn patterns_that_match_one_name_overlap(a in "[ab*?]{1,6}", b in "[ab*?]{1,6}", name in "[ab]{0,6}") {
            let (a, b) = (pattern(&a), pattern(&b));
            prop_assert!(!(a.matches(&name) && b.matches(&name)) || a.may_overlap(&b));
        }
    }
}
