<?php

/**
 * Serves requests until SIGTERM or SIGINT, or until it loses its connection.
 *
 *   php server.php AMQP_URL SERVICE [--events PATTERN]
 *
 * Prints `ready` when it consumes, `handled ACTION` for each request and
 * `event NAME PAYLOAD` for each event.
 */

declare(strict_types=1);

require_once __DIR__ . '/common.php';

use PhpAmqpLib\Channel\AMQPChannel;
use PhpAmqpLib\Message\AMQPMessage;

const PREFETCH = 10;

function handle(string $action, mixed $payload): mixed
{
    switch ($action) {
        case 'echo':
            return $payload;
        case 'double':
            if (!is_int($payload)) {
                throw new InvalidArgumentException('double takes an integer');
            }
            return $payload * 2;
        case 'fail':
            throw new RuntimeException('no luck');
        default:
            throw new BadMethodCallException("Unknown action: $action");
    }
}

function onRequest(AMQPChannel $channel, AMQPMessage $message): void
{
    $request = json_decode($message->getBody(), true);
    if (!is_array($request) || !is_string($request['action'] ?? null)) {
        $message->reject(false);
        say('rejected');
        return;
    }

    $id = $request['message_id'] ?? null;
    try {
        $data = handle($request['action'], $request['payload'] ?? null);
        $reply = ['success' => true, 'data' => $data, 'message_id' => $id];
    } catch (Exception $e) {
        $reply = ['success' => false, 'error' => $e->getMessage(), 'message_id' => $id];
    }

    if (isset($request['reply_to'])) {
        $properties = ['content_type' => 'application/json'];
        if ($message->has('correlation_id')) {
            $properties['correlation_id'] = $message->get('correlation_id');
        }
        $channel->basic_publish(new AMQPMessage(json_encode($reply), $properties), '', $request['reply_to']);
    }
    $message->ack();
    say('handled ' . $request['action']);
}

function onEvent(AMQPMessage $message): void
{
    $event = json_decode($message->getBody(), true);
    if (!is_array($event) || !is_string($event['action'] ?? null)) {
        $message->reject(false);
        say('rejected');
        return;
    }
    $message->ack();
    say('event ' . $event['action'] . ' ' . json_encode($event['payload'] ?? null));
}

if ($argc !== 3 && !($argc === 5 && $argv[3] === '--events')) {
    usage('server.php AMQP_URL SERVICE [--events PATTERN]');
}
[, $url, $service] = $argv;
$pattern = $argv[4] ?? null;

$connection = connect($url);
$channel = $connection->channel();

declareExchange($channel, SERVICE_EXCHANGE, 'direct');
$queue = "service.$service.request";
declareQueue($channel, $queue, SERVICE_EXCHANGE, "request.$service");
$channel->basic_qos(0, PREFETCH, false);
$channel->basic_consume(
    $queue,
    '',
    false,
    false,
    false,
    false,
    fn (AMQPMessage $message) => onRequest($channel, $message)
);

if ($pattern !== null) {
    declareExchange($channel, EVENT_EXCHANGE, 'topic');
    $queue = "event.$service.php";
    declareQueue($channel, $queue, EVENT_EXCHANGE, $pattern);
    $channel->basic_consume($queue, '', false, false, false, false, onEvent(...));
}

// php-amqplib runs the handlers of signals whenever it waits for the socket.
$stop = fn () => $channel->stopConsume();
pcntl_signal(SIGTERM, $stop);
pcntl_signal(SIGINT, $stop);

say('ready');
$channel->consume();

$channel->close();
$connection->close();
