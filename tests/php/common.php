<?php

/**
 * The part that client and server share: the connection, the names and the envelope.
 */

declare(strict_types=1);

// Found on PHP's include path, /usr/share/php with Debian's package php-amqplib.
require_once 'PhpAmqpLib/autoload.php';

use PhpAmqpLib\Channel\AMQPChannel;
use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;

// Standard output is for the caller, who reads it line by line.
ini_set('display_errors', 'stderr');
ini_set('log_errors', '0'); // or they would be there twice

const SERVICE_EXCHANGE = 'service.exchange';
const EVENT_EXCHANGE = 'event.exchange';

/** Prints one line at once. */
function say(string $line): void
{
    fwrite(STDOUT, $line . "\n");
}

function usage(string $text): void
{
    fwrite(STDERR, "usage: $text\n");
    exit(2);
}

/** Connects to amqp://user:password@host:port/vhost; php-amqplib takes no URL. */
function connect(string $url): AMQPStreamConnection
{
    $parts = parse_url($url);
    $vhost = rawurldecode(substr($parts['path'] ?? '', 1));

    return new AMQPStreamConnection(
        $parts['host'],
        $parts['port'] ?? 5672,
        rawurldecode($parts['user'] ?? 'guest'),
        rawurldecode($parts['pass'] ?? 'guest'),
        $vhost === '' ? '/' : $vhost
    );
}

/**
 * Declares a durable exchange. The last argument has to be given: an exchange is
 * auto-deleted by default in php-amqplib.
 */
function declareExchange(AMQPChannel $channel, string $name, string $type): void
{
    $channel->exchange_declare($name, $type, false, true, false);
}

/** Declares a durable queue, neither exclusive nor auto-deleted, and binds it. */
function declareQueue(AMQPChannel $channel, string $queue, string $exchange, string $key): void
{
    $channel->queue_declare($queue, false, true, false, false);
    $channel->queue_bind($queue, $exchange, $key);
}

/** The nine fields of a request, a command or an event. */
function envelope(
    string $source,
    string $target,
    string $action,
    mixed $payload,
    ?string $replyTo = null,
    array $headers = []
): array {
    return [
        'message_id' => 'msg_' . date('YmdHis') . '_' . bin2hex(random_bytes(8)),
        'source_service' => $source,
        'target_service' => $target,
        'action' => $action,
        'timestamp' => time(),
        'correlation_id' => bin2hex(random_bytes(16)),
        'reply_to' => $replyTo,
        'headers' => $headers,
        'payload' => $payload,
    ];
}

/** Makes an AMQP message of an envelope, whose ids are repeated in its properties. */
function toMessage(array $envelope, bool $persistent): AMQPMessage
{
    $properties = [
        'content_type' => 'application/json',
        'message_id' => $envelope['message_id'],
        'correlation_id' => $envelope['correlation_id'],
    ];
    if ($persistent) {
        $properties['delivery_mode'] = AMQPMessage::DELIVERY_MODE_PERSISTENT;
    }
    if ($envelope['reply_to'] !== null) {
        $properties['reply_to'] = $envelope['reply_to'];
    }

    return new AMQPMessage(json_encode($envelope), $properties);
}
