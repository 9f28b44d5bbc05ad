//! One row per option, and the macro that makes rows, structs and defaults from one definition.

use super::Config;
use super::kinds::{EmptyEnv, Kind, Raw, Shown};

/// Everything there is to know about one option.
pub struct Row {
    /// Name on the command line; the environment's name follows from it. `None`: only in the file.
    pub flag: Option<&'static str>,
    /// Dotted key in the file.
    pub key: String,
    pub category: Category,
    pub help: &'static str,
    /// As one would type it; empty: nothing.
    pub default: &'static str,
    /// Left out of the help text.
    pub hidden: bool,
    /// Older or foreign names of the environment variable, asked after the ordinary one.
    pub aliases: Vec<&'static str>,
    /// May stand without a value on the command line.
    pub switch: bool,
    /// May be given several times; all count.
    pub repeated: bool,
    pub secret: bool,
    pub value_name: &'static str,
    /// The values of a closed set.
    pub values: Vec<&'static str>,
    pub empty_env: EmptyEnv,
    /// Puts a value into a configuration. `Err` says what is allowed.
    pub read: fn(&mut Config, Raw<'_>) -> Result<(), String>,
    pub show: fn(&Config) -> Shown,
}

impl Row {
    /// Names of the environment variable, the first defined one wins.
    pub fn env_names(&self) -> Vec<String> {
        let own = self.flag.map(env_name);
        own.into_iter().chain(self.aliases.iter().map(|alias| (*alias).to_owned())).collect()
    }

    /// The table of the file it belongs to; empty for the top level.
    pub fn section(&self) -> &str {
        self.key.split_once('.').map_or("", |(section, _)| section)
    }

    /// How messages call it: by its flag, or by its key if it has none.
    pub fn name(&self) -> &str {
        self.flag.unwrap_or(&self.key)
    }

    /// Its values are URLs or addresses, which may hold a user's password.
    pub fn holds_urls(&self) -> bool {
        matches!(self.value_name, "URL" | "URLS" | "GATEWAYS" | "ADDRESS")
    }

    pub(super) fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    pub(super) fn key(mut self, key: &str) -> Self {
        self.key = match self.section() {
            "" => key.to_owned(),
            section => format!("{section}.{key}"),
        };
        self
    }

    pub(super) fn alias(mut self, name: &'static str) -> Self {
        self.aliases.push(name);
        self
    }

    pub(super) fn repeated(mut self) -> Self {
        self.repeated = true;
        self
    }

    pub(super) fn file_only(mut self) -> Self {
        self.flag = None;
        self
    }
}

/// `ANYCABLE_` and the flag in upper case.
pub fn env_name(flag: &str) -> String {
    format!("ANYCABLE_{}", flag.to_ascii_uppercase().replace('-', "_"))
}

/// Heading in the help text and in the documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    Server,
    Access,
    Rpc,
    WebSocket,
    Ping,
    Broker,
    Broadcasting,
    Streams,
    Nats,
    EmbeddedNats,
    Shutdown,
    Logging,
}

impl Category {
    pub const ALL: [Self; 12] = [
        Self::Server,
        Self::Access,
        Self::Rpc,
        Self::WebSocket,
        Self::Ping,
        Self::Broker,
        Self::Broadcasting,
        Self::Streams,
        Self::Nats,
        Self::EmbeddedNats,
        Self::Shutdown,
        Self::Logging,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Self::Server => "Server",
            Self::Access => "Access and secrets",
            Self::Rpc => "Application (RPC)",
            Self::WebSocket => "WebSocket",
            Self::Ping => "Pings",
            Self::Broker => "Broker: history and sessions",
            Self::Broadcasting => "Publishing and pub/sub",
            Self::Streams => "Streams",
            Self::Nats => "NATS client",
            Self::EmbeddedNats => "Embedded NATS",
            Self::Shutdown => "Shutdown",
            Self::Logging => "Logging",
        }
    }
}

/// What [`options!`] cannot write down itself, because it depends on the kind's type.
pub(super) fn traits_of<T, K: Kind<T>>(_: &K) -> (bool, bool) {
    (K::SWITCH, K::SECRET)
}

/// Structs, defaults and rows from one definition per option:
///
/// `/// help text` `field: Type [kind] = "default as typed", "flag", Category, attribute, …;`
///
/// `derived` fields are no options: they are filled in when the configuration is resolved.
macro_rules! options {
    (
        root {
            $($(#[doc = $rhelp:literal])+
            $rfield:ident: $rtype:ty [$rkind:expr] = $rdefault:literal, $rflag:literal, $rcat:ident
                $(, $rattr:ident $(($rarg:literal))?)*;)*
            derived { $($(#[doc = $rdoc:literal])+ $rextra:ident: $rextra_type:ty;)* }
        }
        $(
            $(#[doc = $sdoc:literal])+
            $section:ident: $Section:ident {
                $($(#[doc = $help:literal])+
                $field:ident: $type:ty [$kind:expr] = $default:literal, $flag:literal, $cat:ident
                    $(, $attr:ident $(($arg:literal))?)*;)*
                derived { $($(#[doc = $doc:literal])+ $extra:ident: $extra_type:ty;)* }
            }
        )*
    ) => {
        /// All settings, typed. [`Default`] is what an empty environment without a file gives, before it is resolved.
        #[derive(Clone, PartialEq, Eq)]
        pub struct Config {
            $($(#[doc = $rhelp])+ pub $rfield: $rtype,)*
            $($(#[doc = $rdoc])+ pub $rextra: $rextra_type,)*
            $($(#[doc = $sdoc])+ pub $section: $Section,)*
        }

        impl Default for Config {
            fn default() -> Self {
                Self {
                    $($rfield: Kind::<$rtype>::read(&$rkind, Raw::Text($rdefault)).expect("defaults are valid"),)*
                    $($rextra: <$rextra_type>::default(),)*
                    $($section: $Section::default(),)*
                }
            }
        }

        impl std::fmt::Debug for Config {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct("Config")
                    $(.field(stringify!($rfield), &format_args!("{}", Kind::show(&$rkind, &self.$rfield).masked())))*
                    $(.field(stringify!($rextra), &self.$rextra))*
                    $(.field(stringify!($section), &self.$section))*
                    .finish()
            }
        }

        $(
            $(#[doc = $sdoc])+
            #[derive(Clone, PartialEq, Eq)]
            pub struct $Section {
                $($(#[doc = $help])+ pub $field: $type,)*
                $($(#[doc = $doc])+ pub $extra: $extra_type,)*
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self {
                        $($field: Kind::<$type>::read(&$kind, Raw::Text($default)).expect("defaults are valid"),)*
                        $($extra: <$extra_type>::default(),)*
                    }
                }
            }

            impl std::fmt::Debug for $Section {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.debug_struct(stringify!($Section))
                        $(.field(stringify!($field), &format_args!("{}", Kind::show(&$kind, &self.$field).masked())))*
                        $(.field(stringify!($extra), &self.$extra))*
                        .finish()
                }
            }
        )*

        fn build_rows() -> Vec<Row> {
            let mut rows = Vec::new();
            $(rows.push(options!(@row ($rfield) stringify!($rfield), $rtype, $rkind, $rdefault, $rflag, $rcat,
                concat!($($rhelp),+)) $(.$rattr($($rarg)?))*);)*
            $($(rows.push(options!(@row ($section.$field) concat!(stringify!($section), ".", stringify!($field)),
                $type, $kind, $default, $flag, $cat, concat!($($help),+)) $(.$attr($($arg)?))*);)*)*
            rows
        }
    };
    (@row ($($path:tt)+) $key:expr, $type:ty, $kind:expr, $default:literal, $flag:literal, $cat:ident, $help:expr) => {{
        let (switch, secret) = traits_of::<$type, _>(&$kind);
        Row {
            flag: Some($flag),
            key: $key.to_owned(),
            category: Category::$cat,
            help: $help.trim(),
            default: $default,
            hidden: false,
            aliases: Vec::new(),
            switch,
            repeated: false,
            secret,
            value_name: Kind::<$type>::value_name(&$kind),
            values: Kind::<$type>::values(&$kind),
            empty_env: Kind::<$type>::empty_env(&$kind),
            read: |config, raw| {
                config.$($path)+ = Kind::<$type>::read(&$kind, raw)?;
                Ok(())
            },
            show: |config| Kind::<$type>::show(&$kind, &config.$($path)+),
        }
    }};
}
pub(super) use options;
